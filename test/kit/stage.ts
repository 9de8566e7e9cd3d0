import { connect, type Socket } from 'node:net';
import pg from 'pg';
import { afterAll, afterEach, beforeAll } from 'vitest';
import { normalizeConfig } from '../../core/host/config/index.js';
import { type Gateway, startGateway } from '../../core/host/gateway.js';
import { createLog } from '../../core/host/log.js';
import { type EmbeddedPair, type EmbeddedServer, startPair } from '../../plugins/embedded-postgres/index.js';
import { type FaultConnection, type FaultProxy, type Side, startFaultProxy } from './fault-proxy.js';
import { eventually, restorePair } from './servers.js';

/** A pair of servers, a fault proxy before each, a gateway before both. */
export class Stage {
  pair!: EmbeddedPair;
  gateway!: Gateway;
  readonly #proxies = new Map<string, FaultProxy>();
  readonly #clients: { destroy(): void }[] = [];
  readonly #direct = new Map<EmbeddedServer, Promise<Awaited<ReturnType<EmbeddedServer['connect']>>>>();
  readonly #lines = new Map<FaultConnection, Line>();
  #named = 0;

  /** Called by {@link useStage}. */
  async begin(setup: string, limits: Record<string, unknown>): Promise<void> {
    this.pair = await startPair({});
    const servers = [this.pair.primary, this.pair.standby];
    for (const server of servers) {
      const proxy = await startFaultProxy({
        target: { host: server.host, port: server.port },
        onClientBytes: (chunk, connection) => this.#lineAt(connection).pass('client', chunk),
        onServerBytes: (chunk, connection) => this.#lineAt(connection).pass('server', chunk),
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
    this.#lines.clear();
    for (const proxy of this.#proxies.values()) await proxy.heal();
    await restorePair(this.pair);
  }

  async forgetClients(): Promise<void> {
    for (const client of this.#clients.splice(0)) client.destroy();
    await this.#hangUp();
  }

  /** Ends the direct connections. */
  async #hangUp(): Promise<void> {
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
    await this.#hangUp();
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
    const name = `raw${++this.#named}.`;
    const client = await Raw.connect(this.port, name, { application_name: name, ...parameters });
    this.#clients.push(client);
    return client;
  }

  #lineAt(connection: FaultConnection): Line {
    let line = this.#lines.get(connection);
    if (line === undefined) this.#lines.set(connection, (line = new Line(connection)));
    return line;
  }

  /** The present server connection of a raw client, known by the name that it logged in with. */
  line(client: Raw): Line {
    const found = [...this.#lines.values()].findLast((line) =>
      line.startup.includes(`application_name\0${client.name}\0`),
    );
    if (found === undefined) throw new Error(`no server connection of ${client.name}`);
    return found;
  }

  /** For clients of other drivers: ended with the rest. */
  adopt(client: { destroy(): void }): void {
    this.#clients.push(client);
  }
}

/** One connection between the gateway and a server, as its proxy sees it. */
export class Line {
  /** What the gateway said first. */
  startup: Buffer = Buffer.alloc(0);
  readonly #seen: Record<Side, Buffer[]> = { client: [], server: [] };
  readonly #left: Record<Side, number> = { client: Number.POSITIVE_INFINITY, server: Number.POSITIVE_INFINITY };

  /** Puts other bytes in the place of a chunk, when set. */
  rewrite: ((side: Side, chunk: Buffer) => Buffer) | null = null;

  constructor(readonly connection: FaultConnection) {}

  /** A chunk from a side; what is returned goes on. */
  pass(side: Side, received: Buffer): Buffer {
    const chunk = this.rewrite === null ? received : this.rewrite(side, received);
    if (side === 'client' && this.startup.length === 0) this.startup = chunk;
    this.#seen[side].push(chunk);
    const passed = chunk.subarray(0, this.#left[side]);
    this.#left[side] -= passed.length;
    return passed;
  }

  /** What came from a side since the last {@link forget}, lost or not. */
  seen(side: Side): Buffer {
    return Buffer.concat(this.#seen[side]);
  }

  forget(): void {
    this.#seen.client = [];
    this.#seen.server = [];
  }

  /** After so many more bytes of a side, all that it says is lost; the other side is heard as before. */
  loseAfter(side: Side, bytes: number): void {
    this.#left[side] = bytes;
  }

  /** True when a side said all that may pass. */
  get silenced(): boolean {
    return this.#left.client === 0 || this.#left.server === 0;
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
  /** As told at login. */
  readonly parameters = new Map<string, string>();
  /** DataRows are counted and handed over here instead of kept, when set. */
  onRow: ((body: Buffer) => void) | null = null;
  #rest: Buffer = Buffer.alloc(0);
  #awake: () => void = () => {};

  private constructor(
    readonly socket: Socket,
    readonly name: string,
  ) {
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#arrive(chunk));
    socket.on('error', () => {});
    socket.on('close', () => {
      this.closed = true;
      this.#awake();
    });
  }

  static async connect(port: number, name: string, parameters: Record<string, string>): Promise<Raw> {
    const raw = new Raw(connect({ host: '127.0.0.1', port }), name);
    const pairs = Object.entries({ user: 'postgres', database: 'postgres', ...parameters });
    const body = Buffer.from(`\0\x03\0\0${pairs.map(([key, value]) => `${key}\0${value}\0`).join('')}\0`, 'latin1');
    const head = Buffer.alloc(4);
    head.writeInt32BE(body.length + 4);
    raw.socket.write(Buffer.concat([head, body]));
    for (const { type, body } of await raw.ready()) {
      if (type === 'S') raw.parameters.set(...(body.toString('utf8').split('\0', 2) as [string, string]));
    }
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
    const fields = new Map(
      body
        .toString('utf8')
        .split('\0')
        .filter(Boolean)
        .map((f) => [f[0], f.slice(1)]),
    );
    return `${type}:${fields.get('C')}:${fields.get('M')}`;
  }
  return body.length === 0 ? type : `${type}:${body.toString('latin1').replace(/[^\x20-\x7e]/g, '.')}`;
}

/** Types of the frames in a stream of whole frames, for counting what a server is asked. */
export function frameTypes(bytes: Buffer): string {
  let types = '';
  for (let at = 0; at + 5 <= bytes.length; at += bytes.readInt32BE(at + 1) + 1) types += String.fromCharCode(bytes[at]);
  return types;
}

/** Where the frames of a stream end. */
function frameEnds(bytes: Buffer): number[] {
  const ends: number[] = [];
  for (let at = 0; at + 5 <= bytes.length; ) ends.push((at += bytes.readInt32BE(at + 1) + 1));
  return ends;
}

/** One thing that a client sends, and how many ready points it then waits for (one by default). */
export interface Step {
  readonly send: readonly Uint8Array[];
  readonly readies?: number;
}

/** What a client does, told apart from others by its number (four digits). */
export type Script = (id: string) => readonly (Step | Uint8Array)[];

/** Plays a script. Resolves with all that the client received, its number left out. */
export async function play(client: Raw, script: Script, id: string): Promise<string[]> {
  const heard: string[] = [];
  const believed = new Map(client.parameters);
  for (const step of script(id)) {
    const { send, readies = 1 } = step instanceof Uint8Array ? { send: [step] } : step;
    client.send(...send);
    const parameters = new Map<string, string>();
    for (const frame of await client.ready(readies)) {
      if (frame.type === 'S') {
        // These may come anywhere; what counts is what the client believes when it may speak again.
        const [name, value] = frame.body.toString('utf8').split('\0');
        parameters.set(name, value);
      } else heard.push(show(frame).replaceAll(id, '####'));
    }
    for (const [name, value] of parameters) {
      if (believed.get(name) === value) continue;
      believed.set(name, value);
      heard.push(`S:${name}=${value}`);
    }
  }
  return heard;
}

/** What one client of {@link everywhere} heard, and should have. */
export interface Played {
  readonly script: string;
  readonly id: string;
  readonly where: string;
  readonly heard: readonly string[];
  readonly expected: readonly string[];
}

let counter = 1000;

/**
 * Plays each script once undisturbed, then once for each place where its server connection can be lost: before and after every
 * message that the gateway or the server says (and, with `cut`, inside of it). All clients stand at their places when the server
 * is killed (or, with `cut`, when their connections are lost and the server lives on); then they play to the end.
 */
export async function everywhere(
  stage: Stage,
  scripts: Readonly<Record<string, Script>>,
  how: 'kill' | 'cut',
): Promise<Played[]> {
  const places: Place[] = [];
  const played: Played[] = [];
  for (const [name, script] of Object.entries(scripts)) {
    const client = await stage.raw();
    const line = stage.line(client);
    line.forget();
    const id = String(counter++);
    const expected = await play(client, script, id);
    played.push({ script: name, id, where: 'undisturbed', heard: expected, expected });
    for (const side of ['client', 'server'] as const) {
      const bytes = line.seen(side);
      const types = frameTypes(bytes);
      let start = 0;
      frameEnds(bytes).forEach((end, i) => {
        const where = `${side} ${types.slice(0, i)}>${types[i]}<${types.slice(i + 1)}`;
        const place = { name, script, expected, side };
        if (how === 'cut') places.push({ ...place, after: start + 3, where: `${where} inside` });
        // A kill costs seconds: only before what the server acts upon, and what tells something.
        if (how === 'cut' || ACTIONS.includes(types[i]))
          places.push({ ...place, after: start, where: `${where} before` });
        start = end;
      });
      places.push({ name, script, expected, side, after: start, where: `${side} ${types} after` });
    }
    client.destroy();
  }
  for (let i = 0; i < places.length; i += BATCH) {
    if (i > 0 && how === 'kill') await restorePair(stage.pair);
    await lose(stage, places.slice(i, i + BATCH), how, played);
  }
  return played;
}

interface Place {
  readonly name: string;
  readonly script: Script;
  readonly expected: readonly string[];
  readonly side: Side;
  readonly after: number;
  readonly where: string;
}

async function lose(stage: Stage, places: readonly Place[], how: 'kill' | 'cut', played: Played[]): Promise<void> {
  const clients: Raw[] = [];
  for (const _ of places) clients.push(await stage.raw());
  const lines = clients.map((client) => stage.line(client));
  const replies = places.map(({ name, script, expected, side, after, where }, i) => {
    const id = String(counter++);
    lines[i].loseAfter(side, after);
    return play(clients[i], script, id)
      .catch((error: Error) => [error.message])
      .then((heard) => played.push({ script: name, id, where, heard, expected }));
  });
  await eventually(() => lines.every((line) => line.silenced), { message: 'all at their places', timeoutMs: 20_000 });
  // What was said has reached the server and is done, so that what was not answered has happened nevertheless.
  await eventually(async () => (await stage.rows(BUSY)) === 0, { message: 'idle servers', timeoutMs: 20_000 });
  if (how === 'kill') await stage.kill();
  else for (const line of lines) line.connection.cut();
  await Promise.all(replies);
  for (const client of clients) client.destroy();
}

/** Types of messages, both ways, that make or tell a difference. */
const ACTIONS = 'QSFHCDVEZ';
/** Clients at a time; the servers take some more. */
const BATCH = 200;

const BUSY = `pg_stat_activity where state = 'active' and pid <> pg_backend_pid()
  and backend_type = 'client backend' and wait_event is distinct from 'ClientRead'`;

/** Fails for each client that heard anything else than it should have, and names the place. */
export function expectAsUndisturbed(played: readonly Played[]): void {
  const wrong = played.filter(({ heard, expected }) => heard.join('\n') !== expected.join('\n'));
  const text = wrong.map(({ script, id, where, heard, expected }) => {
    const at = Math.max(0, heard.findIndex((frame, i) => frame !== expected[i]) - 2);
    return `${script}, ${id} lost at ${where}:\n    heard ... ${heard.slice(at).join(' ')}\n    expected ... ${expected.slice(at).join(' ')}`;
  });
  if (wrong.length > 0)
    throw new Error(`${wrong.length} of ${played.length} heard something else:\n  ${text.join('\n  ')}`);
}

/** Runs one query and gives the groups of rows per client: what is there must not depend on the place. */
export async function effects(stage: Stage, sql: string): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>();
  for (const { id, what } of await stage.direct<{ id: string; what: string }>(sql)) {
    found.set(id, [...(found.get(id) ?? []), what.replaceAll(id, '####')]);
  }
  return found;
}

/** Fails for each client whose effects differ from those of the undisturbed one of its script. */
export function expectSameEffects(played: readonly Played[], found: Map<string, string[]>): void {
  const of = (id: string) => [...(found.get(id) ?? [])].sort().join(', ');
  const wrong: string[] = [];
  for (const { script, id, where } of played) {
    const first = played.find((p) => p.script === script && p.where === 'undisturbed')!;
    if (of(id) !== of(first.id)) wrong.push(`${script}, ${id} lost at ${where}: ${of(id)} instead of ${of(first.id)}`);
  }
  if (wrong.length > 0)
    throw new Error(`${wrong.length} of ${played.length} had other effects:\n  ${wrong.join('\n  ')}`);
}
