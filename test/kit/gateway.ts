import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { connect as netConnect, type Socket } from 'node:net';
import { join } from 'node:path';
import { type ConnectionOptions, connect as tlsConnect } from 'node:tls';
import pg from 'pg';
import { afterAll, beforeAll } from 'vitest';
import type { Log } from '../../core/contract/index.js';
import { type ConfigInput, normalizeConfig } from '../../core/host/config/index.js';
import { type Gateway, startGateway } from '../../core/host/gateway.js';
import { createLog } from '../../core/host/log.js';
import { selfSignedCert, tempDir } from './servers.js';

type ListenerInput = ConfigInput['listeners'][number];
type ClusterInput = ConfigInput['clusters'][number];

/** Where a server is. */
export interface ServerAddress {
  readonly port: number;
  readonly host?: string;
  readonly name?: string;
  readonly tls?: 'off' | 'prefer' | 'require' | 'verify-full';
}

/** What a gateway stands in front of: the holder of usePair() or useServer(), or addresses (of a proxy, say). */
export type Backends =
  | { readonly pair: { readonly primary: ServerAddress; readonly standby: ServerAddress } }
  | { readonly server: ServerAddress }
  | readonly ServerAddress[]
  | (() => readonly ServerAddress[]);

/** What a test wants different from a plain gateway that trusts everybody. */
export interface GatewayOverrides {
  /** Merged over the only listener; `limits`, `failover` and `tls` one level deeper. */
  readonly listener?: Partial<ListenerInput>;
  /** Merged over the only cluster; `monitor` one level deeper. */
  readonly cluster?: Partial<ClusterInput>;
  /** TLS towards clients, with a certificate made for this gateway. */
  readonly tls?: 'off' | 'allow' | 'require';
  /** Users and their secrets (password or verifier), for a credentials file. */
  readonly users?: Readonly<Record<string, string>>;
  /** Opens the admin door on a free port. */
  readonly admin?: boolean;
  /** Level of what goes to the standard error stream; by default LOG of the environment or warn. */
  readonly logLevel?: 'debug' | 'info' | 'warn' | 'error' | 'silent';
  /** Sees everything that is logged, in place of the standard error stream. */
  readonly log?: Log;
  /** Directory that relative paths of the configuration start from. */
  readonly baseDir?: string;
}

/** A gateway that runs for a test. */
export interface TestGateway {
  readonly gateway: Gateway;
  readonly port: number;
  /** The certificate (PEM) that clients may trust; empty without TLS. */
  readonly cert: string;
  stop(): Promise<void>;
}

/** The configuration of a gateway for tests: free ports, quick monitoring. */
export function gatewayConfig(backends: Backends, overrides: GatewayOverrides = {}): ConfigInput & { certPem: string } {
  const { listener = {}, cluster = {}, users, tls = 'off', admin = false, logLevel } = overrides;
  const dir = users === undefined && tls === 'off' ? '' : tempDir();
  let certPem = '';
  const tlsInput: Record<string, unknown> = {};
  if (tls !== 'off') {
    const made = selfSignedCert();
    certPem = made.cert;
    writeFileSync(join(dir, 'gateway.crt'), made.cert);
    writeFileSync(join(dir, 'gateway.key'), made.key, { mode: 0o600 });
    Object.assign(tlsInput, { mode: tls, cert: join(dir, 'gateway.crt'), key: join(dir, 'gateway.key') });
  }
  if (users !== undefined) {
    const quote = (text: string) => `"${text.replaceAll('"', '""')}"`;
    const lines = Object.entries(users).map(([user, secret]) => `${quote(user)} ${quote(secret)}\n`);
    writeFileSync(join(dir, 'users.txt'), lines.join(''), { mode: 0o600 });
  }
  const { failover, tls: listenerTls, ...restOfListener } = listener;
  const { monitor, ...restOfCluster } = cluster;
  return {
    listeners: [
      {
        name: 'main',
        codec: 'postgres',
        listen: '127.0.0.1:0',
        cluster: 'db',
        auth: 'trust',
        ...(users === undefined ? {} : { credentials: { plugin: 'credentials-file', path: join(dir, 'users.txt') } }),
        ...restOfListener,
        failover: { wait: '20s', ...failover },
        ...(tls === 'off' && listenerTls === undefined ? {} : { tls: { ...tlsInput, ...listenerTls } }),
      },
    ],
    clusters: [
      {
        name: 'db',
        servers: serversOf(backends),
        ...restOfCluster,
        monitor: { user: 'postgres', interval: '200ms', ...monitor },
      },
    ],
    ...(admin ? { admin: { listen: '127.0.0.1:0' } } : {}),
    log: { level: logLevel ?? (process.env.LOG as 'debug' | undefined) ?? 'warn', pretty: false },
    certPem,
  };
}

function serversOf(backends: Backends): ClusterInput['servers'] {
  let addresses: readonly ServerAddress[];
  if (typeof backends === 'function') addresses = backends();
  else if ('pair' in backends) addresses = [backends.pair.primary, backends.pair.standby];
  else if ('server' in backends) addresses = [backends.server];
  else addresses = backends;
  return addresses.map(({ host = '127.0.0.1', port, name, tls = 'off' }, i) => {
    return { name: name ?? String.fromCharCode(97 + i), host, port, tls };
  });
}

/** Starts a gateway; the caller stops it. */
export async function launchGateway(backends: Backends, overrides: GatewayOverrides = {}): Promise<TestGateway> {
  const { certPem, ...input } = gatewayConfig(backends, overrides);
  const config = normalizeConfig(input, overrides.baseDir);
  const gateway = await startGateway(config, { log: overrides.log ?? createLog(config.log) });
  return { gateway, port: gateway.listeners[0].port, cert: certPem, stop: () => gateway.stop() };
}

/**
 * Gives the file or the describe block a gateway in front of servers that were asked for before it (usePair, useServer).
 * @returns a holder, because the gateway is there only once the tests run
 */
export function useGateway(
  backends: Backends,
  overrides: GatewayOverrides | (() => GatewayOverrides) = {},
): TestGateway {
  let started: TestGateway | undefined;
  beforeAll(async () => {
    started = await launchGateway(backends, typeof overrides === 'function' ? overrides() : overrides);
  });
  afterAll(async () => {
    await started?.stop();
  });
  const present = (): TestGateway => {
    if (!started) throw new Error('useGateway(): the gateway is there only inside of tests and hooks');
    return started;
  };
  return {
    get gateway() {
      return present().gateway;
    },
    get port() {
      return present().port;
    },
    get cert() {
      return present().cert;
    },
    stop: () => present().stop(),
  };
}

/** A log that keeps its lines. */
export function recordingLog(): Log & {
  readonly lines: { level: string; message: string; [field: string]: unknown }[];
} {
  const lines: { level: string; message: string; [field: string]: unknown }[] = [];
  const at = (level: string) => (fields: Record<string, unknown>, message: string) => {
    lines.push({ ...fields, level, message });
  };
  return { lines, debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

/** A connected client of the pg driver. `errors` collects what it emits between queries. */
export type PgClient = pg.Client & { readonly errors: Error[] };

/** Connects with the pg driver, by default as postgres to the database postgres. */
export async function connectPg(to: { readonly port: number }, config: pg.ClientConfig = {}): Promise<PgClient> {
  const errors: Error[] = [];
  const client = Object.assign(
    new pg.Client({ host: '127.0.0.1', port: to.port, user: 'postgres', database: 'postgres', ...config }),
    { errors },
  );
  client.on('error', (error) => errors.push(error));
  await client.connect();
  return client;
}

// ---------------------------------------------------------------------------------------------------------- raw protocol

/** A message as it came: its type and all of its bytes. */
export interface RawMessage {
  readonly type: string;
  readonly bytes: Buffer;
}

/** A message of the frontend: type, length, body. A type of '' makes a packet without one, as at startup. */
export function message(type: string, ...body: (Buffer | string)[]): Buffer {
  const parts = body.map((part) => (typeof part === 'string' ? Buffer.from(part, 'utf8') : part));
  const length = Buffer.alloc(4);
  length.writeInt32BE(4 + parts.reduce((sum, part) => sum + part.length, 0));
  return Buffer.concat([Buffer.from(type, 'latin1'), length, ...parts]);
}

/** A startup packet. */
export function startupPacket(params: Readonly<Record<string, string>>, protocol = 0x30000): Buffer {
  const version = Buffer.alloc(4);
  version.writeInt32BE(protocol);
  const pairs = Object.entries(params).map(([name, value]) => `${name}\0${value}\0`);
  return message('', version, `${pairs.join('')}\0`);
}

export const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);
export const GSS_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 48]);

/** A CancelRequest with the key as BackendKeyData told it (process id and secret). */
export function cancelRequest(key: Uint8Array): Buffer {
  return message('', Buffer.from([4, 210, 22, 46]), Buffer.from(key));
}

/** How the bytes of a write are cut: at once, or each byte in a segment of its own. */
export type Chop = 'whole' | 'bytes';

/** A client that says exactly the bytes it is told to, and keeps what it hears. */
export class RawClient {
  /** Everything heard, cut into messages; what is not a whole message yet stays in `partial`. */
  readonly messages: RawMessage[] = [];
  partial: Buffer = Buffer.alloc(0);
  /** The process id and secret of BackendKeyData. */
  key: Buffer = Buffer.alloc(0);
  closed = false;
  error: Error | null = null;
  private taken = 0;
  private readonly waiting = new Set<() => void>();
  /** False while bytes come that are not messages (the answer to SSLRequest). */
  private framed = true;

  private constructor(public socket: Socket) {
    this.listen(socket);
  }

  /** Opens the connection and says nothing. */
  static async open(to: { readonly port: number }, options: { host?: string } = {}): Promise<RawClient> {
    const socket = netConnect({ host: options.host ?? '127.0.0.1', port: to.port, noDelay: true });
    const client = new RawClient(socket);
    await once(socket, 'connect');
    return client;
  }

  /** Opens, says the startup packet and reads up to the first ReadyForQuery (trust only). */
  static async login(
    to: { readonly port: number },
    options: { params?: Record<string, string>; protocol?: number; chop?: Chop } = {},
  ): Promise<RawClient> {
    const client = await RawClient.open(to);
    await client.start(options);
    return client;
  }

  /** Says the startup packet and reads up to the first ReadyForQuery (trust only). */
  async start(
    options: { params?: Record<string, string>; protocol?: number; chop?: Chop } = {},
  ): Promise<RawMessage[]> {
    const { params = {}, protocol, chop } = options;
    await this.write(startupPacket({ user: 'postgres', database: 'postgres', ...params }, protocol), chop);
    const greeting = await this.until('Z');
    const key = greeting.find(({ type }) => type === 'K');
    if (key !== undefined) this.key = key.bytes.subarray(5);
    return greeting;
  }

  /** Asks for TLS; resolves with the server's letter. With 'S' the handshake is done. */
  async startTls(options: ConnectionOptions = {}): Promise<string> {
    this.framed = false;
    await this.write(SSL_REQUEST);
    await this.when(() => this.partial.length > 0);
    const letter = this.partial.toString('latin1', 0, 1);
    this.partial = this.partial.subarray(1);
    this.framed = true;
    if (letter === 'S') await this.handshake(options);
    return letter;
  }

  /** Starts a TLS handshake at once. */
  async handshake(options: ConnectionOptions = {}): Promise<void> {
    const plain = this.socket;
    plain.removeAllListeners('data');
    const secure = tlsConnect({ socket: plain, rejectUnauthorized: false, ...options });
    this.socket = secure;
    this.listen(secure);
    await once(secure, 'secureConnect');
  }

  private listen(socket: Socket): void {
    socket.on('data', (chunk: Buffer) => this.hear(chunk));
    socket.on('error', (error) => {
      this.error = error;
    });
    socket.on('close', () => {
      if (socket !== this.socket) return;
      this.closed = true;
      this.wake();
    });
  }

  private hear(chunk: Buffer): void {
    this.partial = this.partial.length === 0 ? chunk : Buffer.concat([this.partial, chunk]);
    while (this.framed && this.partial.length >= 5) {
      const length = 1 + this.partial.readUInt32BE(1);
      if (this.partial.length < length) break;
      this.messages.push({ type: this.partial.toString('latin1', 0, 1), bytes: this.partial.subarray(0, length) });
      this.partial = this.partial.subarray(length);
    }
    this.wake();
  }

  private wake(): void {
    for (const check of [...this.waiting]) check();
  }

  /** Resolves when the condition holds; rejects when the connection closes before, or after `timeoutMs`. */
  when(condition: () => boolean, timeoutMs = 15_000): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = () => {
        if (condition()) done(resolve);
        else if (this.closed) done(() => reject(new Error(`the connection was closed; ${this.heard()}`)));
      };
      const timer = setTimeout(() => done(() => reject(new Error(`nothing more came; ${this.heard()}`))), timeoutMs);
      const done = (then: () => void) => {
        clearTimeout(timer);
        this.waiting.delete(check);
        then();
      };
      this.waiting.add(check);
      check();
    });
  }

  private heard(): string {
    const last = this.messages.at(-1);
    const types = this.messages.slice(this.taken).map(({ type }) => type);
    const error = last?.type === 'E' ? ` (${errorFields(last.bytes).message})` : '';
    return `heard since the last wait: ${types.join('') || 'nothing'}${error}`;
  }

  /** Says these bytes; resolves when the kernel has them. */
  async write(bytes: Uint8Array, chop: Chop = 'whole'): Promise<void> {
    const send = (part: Uint8Array) => new Promise<void>((resolve) => this.socket.write(part, () => resolve()));
    if (chop === 'whole') await send(bytes);
    else for (let i = 0; i < bytes.length && !this.closed; i++) await send(bytes.subarray(i, i + 1));
  }

  /** The messages since the last such call, up to and with the nth of these types. */
  async until(types: string, count = 1, timeoutMs?: number): Promise<RawMessage[]> {
    const end = () => {
      let left = count;
      for (let i = this.taken; i < this.messages.length; i++) {
        if (types.includes(this.messages[i].type) && --left === 0) return i + 1;
      }
      return -1;
    };
    await this.when(() => end() >= 0, timeoutMs);
    const to = end();
    const found = this.messages.slice(this.taken, to);
    this.taken = to;
    return found;
  }

  /** Says these bytes and reads up to the nth ReadyForQuery that follows. */
  async ask(bytes: Uint8Array, readies = 1, chop?: Chop): Promise<RawMessage[]> {
    await this.write(bytes, chop);
    return await this.until('Z', readies);
  }

  /** Runs a Query. */
  async query(sql: string): Promise<RawMessage[]> {
    return await this.ask(message('Q', `${sql}\0`));
  }

  /** The messages that came since the last read, without waiting. */
  rest(): RawMessage[] {
    const found = this.messages.slice(this.taken);
    this.taken = this.messages.length;
    return found;
  }

  /** Resolves when the other side closed the connection. */
  async untilClosed(timeoutMs = 15_000): Promise<void> {
    if (!this.closed) await this.when(() => this.closed, timeoutMs);
  }

  /** Says goodbye and waits for the end. */
  async end(): Promise<void> {
    if (this.closed) return;
    this.socket.end(message('X'));
    await this.untilClosed();
  }

  destroy(): void {
    this.socket.destroy();
  }
}

/** Fields of an ErrorResponse or NoticeResponse. */
export function errorFields(bytes: Buffer): {
  severity: string;
  code: string;
  message: string;
  all: Record<string, string>;
} {
  const all: Record<string, string> = {};
  for (let at = 5; at < bytes.length && bytes[at] !== 0; ) {
    const end = bytes.indexOf(0, at);
    all[String.fromCharCode(bytes[at])] = bytes.toString('utf8', at + 1, end);
    at = end + 1;
  }
  return { severity: all.S, code: all.C, message: all.M, all };
}

/** Columns of a DataRow as text. */
export function rowOf(bytes: Buffer): (string | null)[] {
  const columns: (string | null)[] = [];
  let at = 7;
  for (let i = bytes.readUInt16BE(5); i > 0; i--) {
    const length = bytes.readInt32BE(at);
    at += 4;
    columns.push(length < 0 ? null : bytes.toString('utf8', at, at + length));
    at += Math.max(length, 0);
  }
  return columns;
}
