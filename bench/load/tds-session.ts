import { connect, type Socket } from 'node:net';
import { integerOf, readMessage, readReturnValue } from '../../codecs/tds/facts.js';
import { obfuscatePassword, writeLogin7 } from '../../codecs/tds/login7.js';
import { HEADER_LENGTH, LOGIN7, PRELOGIN, packets, RPC, SQL_BATCH } from '../../codecs/tds/packet.js';
import { ENCRYPT_NOT_SUP, PL_ENCRYPTION, PL_VERSION, versionData, writePrelogin } from '../../codecs/tds/prelogin.js';
import { writeSqlBatch } from '../../codecs/tds/request.js';
import { integerParameter, SP_EXECUTE, SP_PREPARE, textParameter, writeRpc } from '../../codecs/tds/rpc.js';
import { ERROR, RETURNVALUE, TokenReader } from '../../codecs/tds/tokens.js';
import { TDS_7_4, VERSION_7_4 } from '../../codecs/tds/version.js';
import { type LoadHooks, type LoadResult, type LoadTimes, Meter } from './meter.js';

/** Rows that are looked for. */
export const TDS_ACCOUNTS = 100_000;
const SELECT = 'SELECT abalance FROM bench_accounts WHERE aid = ';
const PACKET_SIZE = 4096;
/** Requests of each session that are encoded beforehand. */
const VARIANTS = 256;

/** Where a load goes to, as whom. */
export interface TdsPlace {
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

const unicode = (text: string) => Buffer.from(text, 'utf16le');

/** A client that sends requests that are encoded already, and only counts what comes. */
class TdsLoadSession {
  /** A whole message came: its payload. */
  onAnswer: (payload: Buffer) => void = () => {};
  onLost: () => void = () => {};
  readonly #parts: Buffer[] = [];
  #rest: Buffer = Buffer.alloc(0);

  private constructor(private readonly socket: Socket) {
    socket.on('data', (chunk: Buffer) => this.#hear(chunk));
    socket.on('error', () => {});
    socket.on('close', () => this.onLost());
  }

  static async open({ port, user, password, database }: TdsPlace): Promise<TdsLoadSession> {
    const socket = connect({ host: '127.0.0.1', port, noDelay: true });
    const session = new TdsLoadSession(socket);
    const prelogin = writePrelogin([
      { token: PL_VERSION, data: versionData({ major: 16, minor: 0, build: 1000, subBuild: 0 }) },
      { token: PL_ENCRYPTION, data: Uint8Array.of(ENCRYPT_NOT_SUP) },
    ]);
    await session.ask(PRELOGIN, prelogin);
    const login = writeLogin7({
      tdsVersion: VERSION_7_4,
      packetSize: PACKET_SIZE,
      clientProgVer: 7,
      clientPid: 1,
      connectionId: 0,
      optionFlags1: 0xe0,
      optionFlags2: 0x03,
      typeFlags: 0,
      optionFlags3: 0,
      clientTimeZone: 0,
      clientLcid: 0x409,
      hostName: 'bench',
      userName: user,
      password: obfuscatePassword(unicode(password)),
      appName: 'bench',
      serverName: 'bench',
      cltIntName: 'bench',
      language: '',
      database,
      clientId: new Uint8Array(6),
      sspi: new Uint8Array(0),
      atchDbFile: '',
      changePassword: new Uint8Array(0),
      features: null,
    });
    await session.ask(LOGIN7, login);
    return session;
  }

  #hear(chunk: Buffer): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (bytes.length >= HEADER_LENGTH && bytes.length >= bytes.readUInt16BE(2)) {
      const length = bytes.readUInt16BE(2);
      this.#parts.push(bytes.subarray(HEADER_LENGTH, length));
      const last = (bytes[1] & 1) !== 0;
      bytes = bytes.subarray(length);
      if (!last) continue;
      const parts = this.#parts.splice(0);
      this.onAnswer(parts.length === 1 ? parts[0] : Buffer.concat(parts));
    }
    this.#rest = bytes;
  }

  /** Sends packets. */
  send(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** Sends a message and gives the payload of its answer. Rejects with the server's error. */
  ask(type: number, payload: Uint8Array): Promise<Buffer> {
    return new Promise((done, fail) => {
      this.onLost = () => fail(new Error('the connection was closed'));
      this.onAnswer = (answer) => {
        const message = type === PRELOGIN ? undefined : errorIn(answer);
        if (message === undefined) done(answer);
        else fail(new Error(message));
      };
      this.send(packets(type, payload, PACKET_SIZE));
    });
  }

  end(): void {
    this.onLost = () => {};
    this.socket.destroy();
  }
}

function errorIn(answer: Buffer): string | undefined {
  let found: string | undefined;
  new TokenReader(TDS_7_4).push(answer, 0, answer.length, {
    rows: () => {},
    token: (type, bytes, start, end) => {
      if (type === ERROR) found ??= readMessage(bytes, start, end, TDS_7_4).message;
    },
  });
  return found;
}

function handleIn(answer: Buffer): number {
  let handle = 0;
  new TokenReader(TDS_7_4).push(answer, 0, answer.length, {
    rows: () => {},
    token: (type, bytes, start, end) => {
      if (type === RETURNVALUE) handle = integerOf(readReturnValue(bytes, start, end, { dialect: TDS_7_4 }).value!);
    },
  });
  return handle;
}

/** The requests of a session. */
async function encode(session: TdsLoadSession, prepared: boolean): Promise<Uint8Array[]> {
  const ids = Array.from({ length: VARIANTS }, () => 1 + Math.floor(Math.random() * TDS_ACCOUNTS));
  if (!prepared) return ids.map((id) => packets(SQL_BATCH, writeSqlBatch(0n, `${SELECT}${id}`), PACKET_SIZE));
  const parameters = [integerParameter(null, '', 1), textParameter('@aid int'), textParameter(`${SELECT}@aid`)];
  const handle = handleIn(await session.ask(RPC, writeRpc(0n, [{ procedure: SP_PREPARE, parameters }])));
  return ids.map((id) => {
    const given = [integerParameter(handle), integerParameter(id, '@aid')];
    return packets(RPC, writeRpc(0n, [{ procedure: SP_EXECUTE, parameters: given }]), PACKET_SIZE);
  });
}

/**
 * Runs closed loops of SELECTs by primary key: each session sends its next request when the last one is answered. What is counted
 * are those that ended within the measured time.
 */
export async function runTdsLoad(
  options: TdsPlace & LoadTimes & { readonly clients: number; readonly prepared: boolean },
  hooks: LoadHooks = {},
): Promise<LoadResult> {
  const sessions: TdsLoadSession[] = [];
  const meter = new Meter();
  try {
    const requests: Uint8Array[][] = [];
    for (let i = 0; i < options.clients; i++) {
      const session = await TdsLoadSession.open(options);
      sessions.push(session);
      requests.push(await encode(session, options.prepared));
    }
    for (const [i, session] of sessions.entries()) {
      let next = 0;
      let began = performance.now();
      session.onLost = () => meter.fail(new Error('a session was lost'));
      session.onAnswer = (answer) => {
        // A row comes behind its columns; an error has none.
        const error = answer[0] === ERROR ? errorIn(answer) : undefined;
        const now = performance.now();
        meter.count(now - began, error);
        began = now;
        session.send(requests[i][next++ % VARIANTS]);
      };
      session.send(requests[i][next++]);
    }
    return await meter.run(options, hooks);
  } finally {
    for (const session of sessions) session.end();
  }
}
