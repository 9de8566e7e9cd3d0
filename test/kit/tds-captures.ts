import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import {
  EOM,
  type Message,
  MessageCollector,
  type PacketHeader,
  PacketReader,
  type PacketSink,
  PRELOGIN,
  writeHeader,
} from '../../codecs/tds/packet.js';
import { type TokenReader, type TokenSink, tokenName } from '../../codecs/tds/tokens.js';

/** Where captures of real TDS connections are, when they are somewhere. */
export const TDS_CAPTURES = `${process.env.OUTLIVE_CAPTURES ?? fileURLToPath(new URL('../../../shared/captures', import.meta.url))}/tds/`;

export const haveTdsCaptures = existsSync(TDS_CAPTURES);

/** Names of the captured connections. */
export const tdsCaptures: readonly string[] = haveTdsCaptures
  ? readdirSync(TDS_CAPTURES)
      .filter((name) => name.endsWith('.jsonl'))
      .map((name) => name.slice(0, -6))
  : [];

/** What was read from a socket at once. */
export interface Chunk {
  readonly from: 'client' | 'server';
  readonly bytes: Uint8Array;
}

/** The chunks of a captured connection, in order. */
export function captured(name: string): Chunk[] {
  return readFileSync(`${TDS_CAPTURES}${name}.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { dir: string; hex: string })
    .filter(({ hex }) => hex !== '')
    .map(({ dir, hex }) => ({ from: dir === 'c2s' ? 'client' : 'server', bytes: Buffer.from(hex, 'hex') }));
}

/** All bytes of one direction. */
export const streamOf = (chunks: readonly Chunk[], from: Chunk['from']): Uint8Array =>
  Buffer.concat(chunks.filter((chunk) => chunk.from === from).map(({ bytes }) => bytes));

/** One message with the packets that it came in. */
export interface SeenMessage extends Message {
  /** Its packets, headers included. */
  readonly raw: Uint8Array;
  readonly payload: Uint8Array;
}

/** True for the first byte of a TLS record: TDS packets are over. */
const isTls = (byte: number): boolean => byte >= 0x14 && byte <= 0x17;

/** The messages of one direction, as far as it is in plain text. */
export function messagesOf(stream: Uint8Array, from: Chunk['from']): SeenMessage[] {
  const messages: SeenMessage[] = [];
  let at = 0;
  let message: Message | null = null;
  const reader = new PacketReader(from);
  const collector = new MessageCollector(from, stream.length, (one) => {
    message = one;
    return true;
  });
  while (at < stream.length && !(messages.at(-1)?.type === PRELOGIN && isTls(stream[at]))) {
    message = null;
    const next = reader.push(stream, at, stream.length, collector);
    const one = message as Message | null;
    if (one === null) break;
    messages.push({ ...one, raw: stream.subarray(at, next), payload: one.bytes.subarray(one.start, one.end) });
    at = next;
  }
  return messages;
}

/** Cuts [0, length) into pieces that end at these places. */
export function pieces(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const ends = [...cuts, bytes.length];
  return ends.map((end, index) => bytes.subarray(index === 0 ? 0 : ends[index - 1], end));
}

/** Pieces of one byte each. */
export const bytewise = (bytes: Uint8Array): Uint8Array[] => Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));

/** Notes what a {@link TokenReader} tells, in a form that does not depend on where chunks end. */
export class TokenLog implements TokenSink {
  readonly events: string[] = [];
  #rows = 0;

  constructor(readonly reader: TokenReader) {}

  token(type: number, bytes: Uint8Array, start: number, end: number): void {
    this.#settle();
    const hex = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('hex');
    this.events.push(`${this.reader.position} ${tokenName(type)} ${hex}`);
  }

  rows(count: number): void {
    this.#rows += count;
  }

  row(type: number, bytes: Uint8Array, start: number, end: number): void {
    const hex = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('hex');
    this.events.push(`${tokenName(type)} ${hex}`);
  }

  #settle(): void {
    if (this.#rows > 0) this.events.push(`${this.#rows} rows`);
    this.#rows = 0;
  }

  /** Everything so far. */
  all(): string[] {
    this.#settle();
    return this.events;
  }
}

/** What a reader tells of a token stream that comes in these pieces. */
export function tokensOf(parts: readonly Uint8Array[], reader: TokenReader): string[] {
  const log = new TokenLog(reader);
  for (const part of parts) reader.push(part, 0, part.length, log);
  reader.endMessage();
  return log.all();
}

/** Notes what a {@link PacketReader} tells, and puts the bytes together again. */
export class PacketLog implements PacketSink {
  readonly events: string[] = [];
  readonly out: Uint8Array[] = [];
  #length = 0;

  #settle(): void {
    if (this.#length > 0) this.events.push(`payload ${this.#length}`);
    this.#length = 0;
  }

  packet(header: PacketHeader, first: boolean): void {
    this.#settle();
    this.events.push(`packet ${JSON.stringify(header)} ${first}`);
    const bytes = new Uint8Array(8);
    writeHeader(bytes, 0, header);
    this.out.push(bytes);
  }

  payload(bytes: Uint8Array, start: number, end: number): void {
    this.#length += end - start;
    this.out.push(bytes.slice(start, end));
  }

  end(status: number): boolean {
    this.#settle();
    this.events.push(`end ${status & EOM}`);
    return false;
  }
}
