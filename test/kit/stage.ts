import { connect, type Socket } from 'node:net';
import pg from 'pg';
import { afterAll, afterEach, beforeAll } from 'vitest';
import { normalizeConfig } from '../../core/host/config/index.js';
import { type Gateway, startGateway } from '../../core/host/gateway.js';
import { createLog } from '../../core/host/log.js';
import { type EmbeddedPair, type EmbeddedServer, startPair } from '../../plugins/embedded-postgres/index.js';
import { type FaultConnection, type FaultProxy, startFaultProxy } from './fault-proxy.js';
import { eventually, restorePair } from './servers.js';

/** A pair of servers, a fault proxy before each, a gateway before both. */
export class Stage {
  pair!: EmbeddedPair;
  gateway!: Gateway;
  readonly #proxies = new Map<string, FaultProxy>();
  readonly #clients: { destroy(): void }[] = [];
  readonly #direct = new Map<EmbeddedServer, Promise<Awaited<ReturnType<EmbeddedServer['connect']>>>>();
  /** Sees what the gateway sends to any server; set it to look, unset it when done. */
  onClientBytes: ((chunk: Buffer, connection: FaultConnection) => void) | null = null;

  /** Called by {@link useStage}. */
  async begin(setup: string, limits: Record<string, unknown>): Promise<void> {
    this.pair = await startPair({});
    const servers = [this.pair.primary, this.pair.standby];
    for (const server of servers) {
      const proxy = await startFaultProxy({
        target: { host: server.host, port: server.port },
        onClientBytes: (chunk, connection) => this.onClientBytes?.(chunk, connection),
      });
      this.#proxies.set(server.name, proxy);
    }
    await this.pair.primary.query(setup);
    this.gateway = await startGateway(
      normalizeConfig({
        listeners: [{ name: 'main', codec: 'postgres', listen: '127.0.0.1:0', cluster: 'c', auth: 'trust', limits }],
        clusters: [
          {
            name: 'c',
            servers: servers.map(({ name }) => ({
              name,
              host: '127.0.0.1',
              port: this.#proxies.get(name)!.port,
              tls: 'off',
            })),
            monitor: { user: 'postgres', interval: '100ms' },
          },
        ],
      }),
      { log: createLog({ level: (process.env.LOG as 'debug') ?? 'silent', pretty: false }) },
    );
  }

  async end(): Promise<void> {
    await this.forgetClients();
    await this.gateway?.stop();
    for (const proxy of this.#proxies.values()) await proxy.close();
    await this.pair?.stop();
  }

  /** Back to a healthy pair without clients. */
  async restore(): Promise<void> {
    await this.forgetClients();
    this.onClientBytes = null;
    for (const proxy of this.#proxies.values()) await proxy.heal();
    await restorePair(this.pair);
  }

  async forgetClients(): Promise<void> {
    for (const client of this.#clients.splice(0)) client.destroy();
    for (const client of this.#direct.values()) await client.then((c) => c.end()).catch(() => {});
    this.#direct.clear();
  }

  get port(): number {
    return this.gateway.listeners[0].port;
  }

  /** The proxy before the server that takes writes. */
  get proxy(): FaultProxy {
    return this.#proxies.get(this.pair.primary.name)!;
  }

  /** The proxy before the server that takes over next. */
  get nextProxy(): FaultProxy {
    return this.#proxies.get(this.pair.standby.name)!;
  }

  /** Kills the primary, promotes the standby. What a proxy still holds of the dead server is lost with it. */
  async kill(): Promise<void> {
    const old = this.proxy;
    await this.pair.failover({ how: 'kill' });
    old.cut();
  }

  /** Asks the present primary, past proxy and gateway. */
  async direct<Row = Record<string, unknown>>(sql: string, params?: readonly unknown[]): Promise<Row[]> {
    const server = this.pair.primary;
    let client = this.#direct.get(server);
    if (client === undefined) this.#direct.set(server, (client = server.connect()));
    return (await (await client).query<Row>(sql, params)).rows;
  }

  /** How many rows a table (with a condition, if need be) has on the present primary. */
  async rows(from: string): Promise<number> {
    return (await this.direct<{ n: number }>(`select count(*)::int as n from ${from}`))[0].n;
  }

  /** Waits until a committed row is to be seen. */
  async committed(from: string): Promise<void> {
    await eventually(async () => (await this.rows(from)) > 0, { message: `rows of ${from}` });
  }

  /** A client with the pg driver. Errors of the connection itself are collected. */
  async pg(): Promise<pg.Client & { lost: Error[] }> {
    const client = Object.assign(
      new pg.Client({ host: '127.0.0.1', port: this.port, user: 'postgres', database: 'postgres' }),
      { lost: [] as Error[] },
    );
    client.on('error', (error) => client.lost.push(error));
    await client.connect();
    this.#clients.push((client as unknown as { connection: { stream: Socket } }).connection.stream);
    return client;
  }

  async raw(parameters: Record<string, string> = {}): Promise<Raw> {
    const client = await Raw.connect(this.port, parameters);
    this.#clients.push(client);
    return client;
  }

  /** For clients of other drivers: ended with the rest. */
  adopt(client: { destroy(): void }): void {
    this.#clients.push(client);
  }
}

/**
 * Gives the file a stage. Each test begins on a healthy pair.
 * @param setup SQL that is run once on the primary before the gateway starts
 */
export function useStage(setup: string, limits: Record<string, unknown> = {}): Stage {
  const stage = new Stage();
  beforeAll(() => stage.begin(setup, limits));
  afterEach(() => stage.restore());
  afterAll(() => stage.end());
  return stage;
}

export interface Frame {
  readonly type: string;
  readonly body: Buffer;
}

/** A client that speaks the protocol frame by frame. */
export class Raw {
  /** All frames that came since the login, but for what {@link forget} dropped. */
  frames: Frame[] = [];
  /** Bytes that came since the login. */
  received = 0;
  closed = false;
  /** DataRows are counted and handed over here instead of kept, when set. */
  onRow: ((body: Buffer) => void) | null = null;
  #rest: Buffer = Buffer.alloc(0);
  #awake: () => void = () => {};

  private constructor(readonly socket: Socket) {
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#arrive(chunk));
    socket.on('error', () => {});
    socket.on('close', () => {
      this.closed = true;
      this.#awake();
    });
  }

  static async connect(port: number, parameters: Record<string, string>): Promise<Raw> {
    const raw = new Raw(connect({ host: '127.0.0.1', port }));
    const pairs = Object.entries({ user: 'postgres', database: 'postgres', ...parameters });
    const body = Buffer.from(`\0\x03\0\0${pairs.map(([key, value]) => `${key}\0${value}\0`).join('')}\0`, 'latin1');
    const head = Buffer.alloc(4);
    head.writeInt32BE(body.length + 4);
    raw.socket.write(Buffer.concat([head, body]));
    await raw.ready();
    return raw;
  }

  #arrive(chunk: Buffer): void {
    this.received += chunk.length;
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let at = 0;
    while (bytes.length - at >= 5) {
      const length = bytes.readInt32BE(at + 1) + 1;
      if (bytes.length - at < length) break;
      const body = bytes.subarray(at + 5, at + length);
      if (this.onRow !== null && bytes[at] === 0x44) this.onRow(body);
      else this.frames.push({ type: String.fromCharCode(bytes[at]), body: Buffer.from(body) });
      at += length;
    }
    this.#rest = bytes.subarray(at);
    this.#awake();
  }

  send(...parts: Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  /** Waits until so many frames of this type are there since the last {@link forget}. */
  async until(type: string, count = 1, timeoutMs = 20_000): Promise<void> {
    const deadline = setTimeout(() => this.#awake(), timeoutMs + 5);
    const end = performance.now() + timeoutMs;
    try {
      while (this.frames.filter((f) => f.type === type).length < count) {
        if (this.closed) throw new Error(`closed before ${count} x ${type}: ${this.transcript().join(' ')}`);
        if (performance.now() >= end) throw new Error(`no ${count} x ${type}: ${this.transcript().join(' ')}`);
        await new Promise<void>((resolve) => {
          this.#awake = resolve;
        });
      }
    } finally {
      clearTimeout(deadline);
    }
  }

  /** Waits for ready points, and takes everything up to now away. */
  async ready(count = 1, timeoutMs?: number): Promise<Frame[]> {
    await this.until('Z', count, timeoutMs);
    return this.forget();
  }

  forget(): Frame[] {
    return this.frames.splice(0);
  }

  transcript(): string[] {
    return this.frames.map(show);
  }

  destroy(): void {
    this.socket.destroy();
  }
}

/** A frame as a short text for comparison. */
export function show({ type, body }: Frame): string {
  if (type === 'E' || type === 'N') {
    const fields = new Map(body.toString('utf8').split('\0').filter(Boolean).map((f) => [f[0], f.slice(1)]));
    return `${type}:${fields.get('C')}:${fields.get('M')}`;
  }
  return body.length === 0 ? type : `${type}:${body.toString('latin1').replace(/[^\x20-\x7e]/g, '.')}`;
}

/** Bytes of each frame of a chunk's stream, for counting what a server is asked. */
export function frameTypes(bytes: Buffer): string {
  let types = '';
  for (let at = 0; at + 5 <= bytes.length; at += bytes.readInt32BE(at + 1) + 1) types += String.fromCharCode(bytes[at]);
  return types;
}
