import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { PacketReader, packets, TABULAR_RESULT } from '../codecs/tds/packet.js';
import { TokenReader, type TokenSink } from '../codecs/tds/tokens.js';
import { TDS_7_4 } from '../codecs/tds/version.js';
import { tdsResult } from './load/tds-result.js';
import { foreignCpu, sampleCpu } from './proc.js';
import {
  cell,
  type Figure,
  foreignLines,
  type Machine,
  machine,
  machineLines,
  print,
  progress,
  ratioCell,
  table,
} from './report.js';
import { ratioOfRounds, rotated, type Spread, spreadOf } from './statistics.js';

/** Options of the decode scenario. */
export interface DecodeOptions {
  readonly codec: 'tds';
  readonly megabytes: number;
  readonly rounds: number;
  readonly json: boolean;
}

/** One decoder on one stream in one round. */
export interface DecodeCell {
  readonly stream: string;
  readonly decoder: DecoderName;
  readonly round: number;
  readonly megabytesPerSecond: number;
}

export const DECODERS = ['outlive', 'outlive, packets too', 'tedious'] as const;
export type DecoderName = (typeof DECODERS)[number];

/** What a decoder found, to see that all found the same. */
interface Found {
  rows: number;
  dones: number;
}

/** A stream to decode: the payload of a server's packets, in order, ending at a message's end. */
interface Stream {
  readonly name: string;
  /** As they came in packets. */
  readonly payloads: readonly Buffer[];
  /** The packets themselves, in chunks as a socket brings them. */
  readonly chunks: readonly Uint8Array[];
  readonly bytes: number;
}

/** A socket brings so much at once when a server sends a lot. */
const CHUNK = 64 * 1024;
const PACKET_SIZE = 4096;
const MEGABYTE = 1_000_000;
/** Times as fast as tedious that the skimming must be. */
const LIMIT = 5;

/** The acceptance figures. */
export function decodeFigures(cells: readonly DecodeCell[]): Figure[] {
  return [...new Set(cells.map(({ stream }) => stream))].map((stream) => {
    const spread = ratio(cells, stream, 'outlive');
    return {
      id: 'P1',
      what: `bytes/s of tedious, ${stream}`,
      value: spread?.median,
      rule: 'at least',
      limit: LIMIT,
      spread,
    };
  });
}

function speeds(cells: readonly DecodeCell[], stream: string, decoder: DecoderName): number[] {
  return cells
    .filter((each) => each.stream === stream && each.decoder === decoder)
    .sort((a, b) => a.round - b.round)
    .map(({ megabytesPerSecond }) => megabytesPerSecond);
}

function ratio(cells: readonly DecodeCell[], stream: string, decoder: DecoderName): Spread | undefined {
  return ratioOfRounds(speeds(cells, stream, decoder), speeds(cells, stream, 'tedious'));
}

/** The table of the decode scenario. */
export function decodeTable(cells: readonly DecodeCell[]): string {
  const rows: string[][] = [];
  for (const stream of new Set(cells.map((each) => each.stream))) {
    for (const decoder of DECODERS) {
      const spread = spreadOf(speeds(cells, stream, decoder));
      rows.push([
        stream,
        decoder,
        cell(spread?.median),
        cell(spread?.min),
        cell(spread?.max),
        decoder === 'tedious' ? '' : ratioCell(ratio(cells, stream, decoder)),
      ]);
    }
  }
  return table(['stream', 'decoder', 'MB/s', 'least', 'greatest', 'times tedious'], rows, 2);
}

/** Runs the decode scenario and prints what it found. */
export async function decode(options: DecodeOptions): Promise<Figure[]> {
  const on: Machine = machine();
  const streams = [...capturedStreams(), resultStream()];
  const tedious = await loadTedious();
  const cells: DecodeCell[] = [];
  const foreign: number[] = [];
  const run = async (stream: Stream, decoder: DecoderName, bytes: number): Promise<{ speed: number; found: Found }> => {
    const times = Math.max(1, Math.round(bytes / stream.bytes));
    const started = performance.now();
    const found =
      decoder === 'tedious'
        ? await throughTedious(tedious, stream, times)
        : throughOutlive(stream, times, decoder === 'outlive');
    return { speed: (times * stream.bytes) / MEGABYTE / ((performance.now() - started) / 1000), found };
  };
  for (const stream of streams) {
    // Compiled before it counts, and all find the same.
    const found = new Set<string>();
    for (const decoder of DECODERS) found.add(JSON.stringify((await run(stream, decoder, 20 * MEGABYTE)).found));
    if (found.size !== 1) throw new Error(`decoders disagree on ${stream.name}: ${[...found].join(' ')}`);
  }
  for (let round = 0; round < options.rounds; round++) {
    for (const [index, stream] of streams.entries()) {
      for (const decoder of rotated(DECODERS, round + index)) {
        progress(`round ${round + 1}: ${stream.name}, ${decoder}`);
        globalThis.gc?.();
        const before = sampleCpu();
        const { speed } = await run(stream, decoder, options.megabytes * MEGABYTE);
        const after = sampleCpu();
        if (before && after) foreign.push(foreignCpu(before, after, process.pid));
        cells.push({ stream: stream.name, decoder, round, megabytesPerSecond: speed });
      }
    }
  }
  const figures = decodeFigures(cells);
  const lines = [
    ...machineLines(on),
    ...foreignLines(foreign),
    ...(streams.length > 1 ? [] : ['No captures here: only a result of the bench itself']),
    `${options.megabytes} MB each time, ${options.rounds} rounds`,
    '',
    decodeTable(cells),
  ];
  print(lines, figures, options.json ? { scenario: 'decode', codec: options.codec, machine: on, cells } : undefined);
  return figures;
}

// ------------------------------------------------------------------------------------------------------------ streams

/** The responses of all captured connections, logins included; none where there are no captures. */
function capturedStreams(): Stream[] {
  const folder = `${process.env.OUTLIVE_CAPTURES ?? fileURLToPath(new URL('../../../shared/captures', import.meta.url))}/tds/`;
  if (!existsSync(folder)) return [];
  const payloads: Buffer[] = [];
  const raw: Buffer[] = [];
  for (const name of readdirSync(folder).filter((each) => each.endsWith('.jsonl'))) {
    const chunks = readFileSync(folder + name, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { dir: string; hex: string })
      .filter(({ dir }) => dir === 's2c')
      .map(({ hex }) => Buffer.from(hex, 'hex'));
    let first = true;
    for (const packet of packetsOf(Buffer.concat(chunks))) {
      // The reply to PRELOGIN is no token stream, and behind a handshake everything is encrypted.
      if (packet[0] !== TABULAR_RESULT) break;
      if (!first) {
        payloads.push(packet.subarray(8));
        raw.push(packet);
      }
      first = false;
    }
  }
  return [streamOf('captures', payloads, Buffer.concat(raw))];
}

function resultStream(): Stream {
  const raw = Buffer.from(packets(TABULAR_RESULT, tdsResult(20_000), PACKET_SIZE));
  return streamOf(
    'rows',
    packetsOf(raw).map((packet) => packet.subarray(8)),
    raw,
  );
}

function packetsOf(stream: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 0; at + 8 <= stream.length; ) {
    const length = stream.readUInt16BE(at + 2);
    if (length < 8 || at + length > stream.length) break;
    found.push(stream.subarray(at, at + length));
    at += length;
  }
  return found;
}

function streamOf(name: string, payloads: readonly Buffer[], raw: Buffer): Stream {
  const chunks: Uint8Array[] = [];
  for (let at = 0; at < raw.length; at += CHUNK) chunks.push(raw.subarray(at, at + CHUNK));
  return { name, payloads, chunks, bytes: payloads.reduce((sum, { length }) => sum + length, 0) };
}

// ----------------------------------------------------------------------------------------------------------- decoders

function throughOutlive(stream: Stream, times: number, payloadsOnly: boolean): Found {
  const found: Found = { rows: 0, dones: 0 };
  const tokens = new TokenReader(TDS_7_4);
  const sink: TokenSink = {
    token(type) {
      if (type >= 0xfd) found.dones++;
    },
    rows(count) {
      found.rows += count;
    },
  };
  if (payloadsOnly) {
    for (let i = 0; i < times; i++)
      for (const payload of stream.payloads) tokens.push(payload, 0, payload.length, sink);
    return found;
  }
  const reader = new PacketReader('server');
  const packetSink = {
    packet() {},
    payload(bytes: Uint8Array, start: number, end: number) {
      tokens.push(bytes, start, end, sink);
    },
    end() {
      tokens.endMessage();
      return false;
    },
  };
  for (let i = 0; i < times; i++) for (const chunk of stream.chunks) reader.push(chunk, 0, chunk.length, packetSink);
  return found;
}

/** What is used of tedious: its own parser of token streams, with what it is given inside of it. */
interface Tedious {
  readonly parseTokens: (payloads: Iterable<Buffer>) => AsyncIterable<{ readonly name: string } | undefined>;
}

/** @throws Error when tedious is not installed, which is a dependency of development only */
async function loadTedious(): Promise<Tedious> {
  const load = async (path: string) => ((await import(`tedious/lib/${path}`)) as { default: unknown }).default;
  let Parser: {
    parseTokens(payloads: Iterable<Buffer>, debug: unknown, options: object): ReturnType<Tedious['parseTokens']>;
  };
  let Debug: new () => unknown;
  try {
    Parser = (await load('token/stream-parser.js')) as typeof Parser;
    Debug = (await load('debug.js')) as typeof Debug;
  } catch (error) {
    throw new Error('decode compares with the package tedious: install it beside outlive', { cause: error });
  }
  const options = {
    tdsVersion: '7_4',
    useUTC: true,
    lowerCaseGuids: false,
    useColumnNames: false,
    camelCaseColumns: false,
  };
  return { parseTokens: (payloads) => Parser.parseTokens(payloads, new Debug(), options) };
}

async function throughTedious(tedious: Tedious, stream: Stream, times: number): Promise<Found> {
  const found: Found = { rows: 0, dones: 0 };
  function* all(): Iterable<Buffer> {
    for (let i = 0; i < times; i++) yield* stream.payloads;
  }
  for await (const token of tedious.parseTokens(all())) {
    switch (token?.name) {
      case 'ROW':
      case 'NBCROW':
        found.rows++;
        break;
      case 'DONE':
      case 'DONEPROC':
      case 'DONEINPROC':
        found.dones++;
    }
  }
  return found;
}
