import { constants } from 'node:crypto';
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { createSecureContext, TLSSocket } from 'node:tls';
import { ProtocolError, Reader, Writer } from './wire.js';

/** What a server is set to say about encryption, MS-TDS 2.2.6.5. */
export type Encryption = 'off' | 'on' | 'required' | 'notSupported';

/** What was agreed for a connection. */
export type Encrypted = 'nothing' | 'login' | 'all';

const OFF = 0;
const ON = 1;
const NOT_SUPPORTED = 2;
const REQUIRED = 3;

/** @returns the answer and what it means; null for what cannot be agreed, where the connection ends after the answer */
export function agree(client: number, server: Encryption): { answer: number; encrypted: Encrypted | null } {
  const asked = client & 0x03;
  if (server === 'notSupported') {
    return { answer: NOT_SUPPORTED, encrypted: asked === OFF || asked === NOT_SUPPORTED ? 'nothing' : null };
  }
  if (server === 'off') {
    if (asked === OFF) return { answer: OFF, encrypted: 'login' };
    if (asked === NOT_SUPPORTED) return { answer: NOT_SUPPORTED, encrypted: 'nothing' };
    return { answer: ON, encrypted: 'all' };
  }
  if (asked === NOT_SUPPORTED) return { answer: REQUIRED, encrypted: null };
  return { answer: asked === OFF || server === 'required' ? REQUIRED : ON, encrypted: 'all' };
}

/** The options of a PRELOGIN message by their tokens. */
export function readPrelogin(payload: Buffer): Map<number, Buffer> {
  const options = new Map<number, Buffer>();
  for (let at = 0; ; at += 5) {
    if (at >= payload.length) throw new ProtocolError('PRELOGIN without an end of its options');
    if (payload[at] === 0xff) return options;
    if (at + 5 > payload.length) throw new ProtocolError('PRELOGIN with a cut option');
    const start = payload.readUInt16BE(at + 1);
    const length = payload.readUInt16BE(at + 3);
    if (start + length > payload.length) throw new ProtocolError('PRELOGIN with an option past its end');
    options.set(payload[at], payload.subarray(start, start + length));
  }
}

/** PRELOGIN's answer. */
export function preloginAnswer(encryption: number): Buffer {
  const options: [number, Buffer][] = [
    // Version 16.0.4135.
    [0, Buffer.from('100010270000', 'hex')],
    [1, Buffer.from([encryption])],
    [2, Buffer.from([0])],
    [3, Buffer.alloc(0)],
    // No MARS.
    [4, Buffer.from([0])],
  ];
  let at = options.length * 5 + 1;
  const head = options.map(([token, data]) => {
    const entry = Buffer.from([token, at >> 8, at & 0xff, data.length >> 8, data.length & 0xff]);
    at += data.length;
    return entry;
  });
  return Buffer.concat([...head, Buffer.from([0xff]), ...options.map(([, data]) => data)]);
}

/** What a client says of itself in LOGIN7. */
export interface Login {
  readonly version: number;
  readonly packetSize: number;
  readonly host: string;
  readonly processId: number;
  readonly user: string;
  readonly password: string;
  readonly application: string;
  readonly language: string;
  readonly database: string;
  /** "Warn on USE", "ODBC" and the like. */
  readonly flags: readonly [number, number, number, number];
  /** The features asked for, by their ids. */
  readonly features: ReadonlyMap<number, Buffer>;
}

export function readLogin(payload: Buffer): Login {
  if (payload.length < 86 || payload.readUInt32LE(0) > payload.length) throw new ProtocolError('LOGIN7 that is cut');
  const field = (at: number, bytesEach = 2) => {
    const start = payload.readUInt16LE(at);
    const length = payload.readUInt16LE(at + 2) * bytesEach;
    if (start + length > payload.length) throw new ProtocolError('LOGIN7 with a field past its end');
    return payload.subarray(start, start + length);
  };
  const text = (at: number) => field(at).toString('utf16le');
  const plain = Buffer.from(
    field(44).map((byte) => {
      const mixed = byte ^ 0xa5;
      return ((mixed << 4) | (mixed >> 4)) & 0xff;
    }),
  ); // prettier-ignore
  const features = new Map<number, Buffer>();
  const pointer = field(56, 1);
  // Clients of older versions may set the flag with nothing behind it.
  if ((payload[27] & 0x10) !== 0 && pointer.length >= 4) {
    const reader = new Reader(payload);
    reader.at = pointer.readUInt32LE(0);
    for (let id = reader.u8(); id !== 0xff; id = reader.u8()) features.set(id, reader.take(reader.u32()));
  }
  return {
    version: payload.readUInt32LE(4),
    packetSize: payload.readUInt32LE(8),
    host: text(36),
    processId: payload.readUInt32LE(16),
    user: text(40),
    password: plain.toString('utf16le'),
    application: text(48),
    language: text(64),
    database: text(68),
    flags: [payload[24], payload[25], payload[26], payload[27]],
    features,
  };
}

const PRELOGIN = 0x12;

/**
 * The wire under TLS. In TDS 7 the records of the handshake ride in PRELOGIN packets, and all others come bare; with the
 * strict mode of TDS 8 there are none but bare ones.
 */
class TlsWire extends Duplex {
  #rest: Buffer = Buffer.alloc(0);
  #flight: Buffer[] = [];
  #established = false;

  constructor(
    private readonly socket: Socket,
    private readonly strict: boolean,
  ) {
    super();
  }

  /** Takes what came from the client. */
  feed(chunk: Buffer): void {
    if (this.strict) {
      this.push(chunk);
      return;
    }
    this.#rest = Buffer.concat([this.#rest, chunk]);
    while (this.#rest.length > 0) {
      if (this.#rest[0] !== PRELOGIN) {
        this.push(this.#rest);
        this.#rest = Buffer.alloc(0);
        return;
      }
      if (this.#rest.length < 8 || this.#rest.length < this.#rest.readUInt16BE(2)) return;
      const length = Math.max(this.#rest.readUInt16BE(2), 8);
      this.push(this.#rest.subarray(8, length));
      this.#rest = this.#rest.subarray(length);
    }
  }

  /** The handshake is done: nothing rides in packets any more. */
  established(): void {
    this.#flush();
    this.#established = true;
  }

  override _read(): void {}

  override _write(chunk: Buffer, _: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.socket.destroyed) {
      done();
      return;
    }
    // What is written at once need not begin with a record: its first byte says nothing.
    if (this.strict || this.#established) {
      this.socket.write(chunk, () => done());
      return;
    }
    // All that is written at once is one message.
    if (this.#flight.length === 0) setImmediate(() => this.#flush());
    this.#flight.push(chunk);
    done();
  }

  #flush(): void {
    const payload = Buffer.concat(this.#flight);
    this.#flight = [];
    for (let at = 0; at < payload.length; at += 4088) {
      const part = payload.subarray(at, at + 4088);
      const header = Buffer.from([PRELOGIN, at + 4088 >= payload.length ? 1 : 0, 0, 0, 0, 0, 0, 0]);
      header.writeUInt16BE(part.length + 8, 2);
      if (!this.socket.destroyed) this.socket.write(Buffer.concat([header, part]));
    }
  }

  override _final(done: () => void): void {
    this.socket.end();
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    done(error);
  }
}

/** TLS on the server's side over a socket whose bytes are fed in. */
export interface ServerTls {
  readonly stream: TLSSocket;
  feed(chunk: Buffer): void;
}

export function startTls(socket: Socket, { cert, key }: { cert: string; key: string }, strict: boolean): ServerTls {
  const wire = new TlsWire(socket, strict);
  const secureContext = createSecureContext({
    cert,
    key,
    minVersion: 'TLSv1.2',
    // With 1.3 the two sides disagree about which records of the handshake still ride in packets.
    maxVersion: strict ? 'TLSv1.3' : 'TLSv1.2',
    secureOptions: constants.SSL_OP_NO_TICKET,
  });
  const stream = new TLSSocket(wire, {
    isServer: true,
    secureContext,
    ...(strict ? { ALPNProtocols: ['tds/8.0'] } : {}),
  });
  // The last words of the handshake are written right after the event.
  stream.once('secure', () => setImmediate(() => wire.established()));
  return { stream, feed: (chunk) => wire.feed(chunk) };
}

/** The answer to a login that succeeded, LOGINACK. */
export function loginAck(version: number): Buffer {
  const inside = new Writer();
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(version);
  inside.u8(1).raw(bytes).text('Microsoft SQL Server', 1).u8(16, 0, 0x10, 0x27);
  const body = inside.bytes();
  return new Writer().u8(0xad).u16(body.length).raw(body).bytes();
}
