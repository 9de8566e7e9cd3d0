import { connect, type Socket } from 'node:net';
import { messagesOf, type TokenShape, tokensOf } from './tds-tokens.js';

const PRELOGIN = Buffer.from('00000b0006010011000 1ff0000000000000 2'.replaceAll(' ', ''), 'hex');

/** LOGIN7 of sa, with the features as they stand in FEATUREEXT (without its end). */
function login7(version: number, packetSize: number, features: Buffer): Buffer {
  const fixed = Buffer.alloc(94);
  fixed.writeUInt32LE(version, 4);
  fixed.writeUInt32LE(packetSize, 8);
  fixed[24] = 0xe0;
  fixed[25] = 0x03;
  fixed[27] = features.length > 0 ? 0x10 : 0;
  const password = Buffer.from('Outlive.1', 'utf16le').map((byte) => (((byte << 4) | (byte >> 4)) & 0xff) ^ 0xa5);
  const parts: Buffer[] = [];
  let at = fixed.length;
  const put = (place: number, bytes: Buffer, unit: number) => {
    fixed.writeUInt16LE(at, place);
    fixed.writeUInt16LE(bytes.length / unit, place + 2);
    parts.push(bytes);
    at += bytes.length;
  };
  put(36, Buffer.from('host', 'utf16le'), 2);
  put(40, Buffer.from('sa', 'utf16le'), 2);
  put(44, Buffer.from(password), 2);
  put(48, Buffer.from('raw', 'utf16le'), 2);
  put(52, Buffer.from('server', 'utf16le'), 2);
  const pointer = Buffer.alloc(features.length > 0 ? 4 : 0);
  put(56, pointer, 1);
  put(60, Buffer.from('raw', 'utf16le'), 2);
  for (const place of [64, 68, 78, 82, 86]) put(place, Buffer.alloc(0), 2);
  if (features.length > 0) {
    pointer.writeUInt32LE(at);
    parts.push(features, Buffer.from([0xff]));
  }
  const all = Buffer.concat([fixed, ...parts]);
  all.writeUInt32LE(all.length);
  return all;
}

/** A client that sends what no driver does. */
export class RawTds {
  #received: Buffer = Buffer.alloc(0);
  #seen = 0;
  #wake = () => {};
  ended = false;
  /** What ALL_HEADERS of the next requests carry. */
  descriptor = Buffer.alloc(8);

  private constructor(
    private readonly socket: Socket,
    readonly version: number,
  ) {
    socket.on('data', (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.ended = true;
      this.#wake();
    });
  }

  /** Logs in. Gives the client, and the tokens of the answer with its bytes. */
  static async connect(port: number, { version = 0x74000004, packetSize = 4096, features = Buffer.alloc(0) } = {}) {
    const raw = new RawTds(connect(port, '127.0.0.1'), version);
    raw.send(18, PRELOGIN);
    await raw.answer();
    raw.send(16, login7(version, packetSize, features));
    const payload = await raw.answer();
    return { raw, payload, tokens: tokensOf(payload, version) };
  }

  /** How many bytes the server has sent. */
  get heard(): number {
    return this.#received.length;
  }

  /** One packet, that is a whole message where its status says so. */
  packet(type: number, payload: Buffer, status: number): void {
    const header = Buffer.from([type, status, 0, 0, 0, 0, 1, 0]);
    header.writeUInt16BE(payload.length + 8, 2);
    this.socket.write(Buffer.concat([header, payload]));
  }

  send(type: number, payload: Buffer, status = 0): void {
    this.packet(type, payload, status | 1);
  }

  /** The next message of the server. Throws when the connection ends first. */
  async answer(): Promise<Buffer> {
    for (;;) {
      const messages = messagesOf(this.#received);
      if (messages.length > this.#seen) return messages[this.#seen++].payload;
      if (this.ended) throw new Error('the server ended the connection');
      await new Promise<void>((done) => (this.#wake = done));
    }
  }

  headers(): Buffer {
    const bytes = Buffer.from('160000001200000002000000000000000000 01000000'.replaceAll(' ', ''), 'hex');
    this.descriptor.copy(bytes, 10);
    return bytes;
  }

  /** A request with headers; gives the tokens of its answer. */
  async ask(type: number, payload: Buffer, status = 0): Promise<TokenShape[]> {
    this.send(type, Buffer.concat([this.headers(), payload]), status);
    const answer = await this.answer();
    const at = answer.indexOf(Buffer.from([0xe3, 0x0b, 0x00, 0x08, 0x08]));
    if (at >= 0) this.descriptor = Buffer.from(answer.subarray(at + 5, at + 13));
    else if (
      tokensOf(answer, this.version).some(({ name, detail }) => name === 'ENVCHANGE' && /^(9|10)$/.test(detail))
    ) {
      this.descriptor = Buffer.alloc(8);
    }
    return tokensOf(answer, this.version);
  }

  batch(text: string, status = 0): Promise<TokenShape[]> {
    return this.ask(1, Buffer.from(text, 'utf16le'), status);
  }

  close(): void {
    this.socket.destroy();
  }
}
