import { connect, createServer, type Server, type Socket } from 'node:net';

/** Who sent the bytes: the client that connected to the proxy, or the server behind it. */
export type Side = 'client' | 'server';

/** Where the proxy connects to. */
export interface Target {
  readonly host: string;
  readonly port: number;
}

/**
 * Looks at the bytes that one connection has brought from one side since the trigger was set (at most the last MiB).
 */
export type BytesPredicate = (bytesSoFar: Buffer, connection: FaultConnection) => boolean;

/**
 * What a trigger does. It runs before the chunk that matched is forwarded, so what it holds or cuts concerns that chunk
 * already. While a returned promise is pending, the matching side of the connection is held.
 */
export type TriggerAction = (connection: FaultConnection) => unknown;

/** Sees each chunk when it arrives. A returned buffer takes the place of the chunk. */
export type ByteTap = (chunk: Buffer, connection: FaultConnection) => unknown;

export interface FaultProxyOptions {
  /** Where to connect to; a function is asked for each connection. */
  readonly target: Target | (() => Target);
  /** Port to listen on; by default a free one. */
  readonly port?: number;
  readonly onClientBytes?: ByteTap;
  readonly onServerBytes?: ByteTap;
}

/** reset: what is under way is lost and the peer sees ECONNRESET. end: the peer sees an orderly end. */
export type CutHow = 'reset' | 'end';

const HOST = '127.0.0.1';
const PREDICATE_BYTES = 1024 * 1024;

interface Trigger {
  readonly side: Side;
  readonly matches: BytesPredicate;
  readonly fire: (connection: FaultConnection) => unknown;
  times: number;
  /** What each connection has brought since the trigger was set. */
  readonly seen: WeakMap<FaultConnection, Buffer>;
  /** Only for this connection; undefined for all. */
  readonly only: FaultConnection | undefined;
}

/** One direction of a connection. */
class Flow {
  readonly queue: Buffer[] = [];
  /** Bytes that have come in. */
  received = 0;
  /** Bytes that have been passed on. */
  forwarded = 0;
  held = false;
  /** Trigger actions that are not done yet. */
  pending = 0;
  ended = false;
  /** How many more bytes may pass before the connection is cut. */
  budget = Number.POSITIVE_INFINITY;
  cutHow: CutHow = 'reset';
}

/** One client connection through the proxy, and its connection to the server. */
export class FaultConnection {
  /** Counts from 1 in the order in which connections came in. */
  readonly id: number;
  readonly #client: Socket;
  #server: Socket | undefined;
  readonly #flows: Record<Side, Flow> = { client: new Flow(), server: new Flow() };
  readonly #inspect: (connection: FaultConnection, side: Side, chunk: Buffer) => Buffer;
  readonly #closed: Promise<void>;
  #blackholed = false;
  #lostBytes = false;
  #isClosed = false;
  #cut = false;

  /** Made by the proxy. */
  constructor(
    id: number,
    client: Socket,
    target: Target | undefined,
    inspect: (connection: FaultConnection, side: Side, chunk: Buffer) => Buffer,
  ) {
    this.id = id;
    this.#client = client;
    this.#inspect = inspect;
    const over: Promise<unknown>[] = [new Promise((resolve) => client.once('close', resolve))];
    this.#listen('client', client);
    if (target) {
      const server = connect({ host: target.host, port: target.port, allowHalfOpen: true, noDelay: true });
      this.#server = server;
      over.push(new Promise((resolve) => server.once('close', resolve)));
      this.#listen('server', server);
    } else {
      // Accepted into a black hole: there is no server and never will be one.
      this.#blackholed = true;
      this.#lostBytes = true;
    }
    this.#closed = Promise.all(over).then(() => {
      this.#isClosed = true;
    });
  }

  /** Resolves when both sides are closed. */
  get closed(): Promise<void> {
    return this.#closed;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** How many bytes have come in from a side. */
  received(side: Side): number {
    return this.#flows[side].received;
  }

  /** How many bytes from a side have been passed on to the other. */
  forwarded(side: Side): number {
    return this.#flows[side].forwarded;
  }

  /** The bytes from a side that are held at the moment. */
  parked(side: Side): Buffer {
    return Buffer.concat(this.#flows[side].queue);
  }

  #socket(side: Side): Socket | undefined {
    return side === 'client' ? this.#client : this.#server;
  }

  #other(side: Side): Socket | undefined {
    return side === 'client' ? this.#server : this.#client;
  }

  #listen(side: Side, socket: Socket): void {
    socket.on('data', (chunk: Buffer) => this.#arrive(side, chunk));
    socket.on('end', () => {
      this.#flows[side].ended = true;
      this.#flush(side);
    });
    // What follows an error is 'close', and that is where it is dealt with.
    socket.on('error', () => {});
    socket.on('close', () => {
      const flow = this.#flows[side];
      if (this.#blackholed || this.#other(side)?.destroyed) return;
      if (flow.ended) {
        // It said that it ends, and does not listen any more either.
        if (!this.#isHeld(flow)) this.#other(side)?.destroySoon();
        return;
      }
      // A reset goes through as a reset, but not past bytes that are held: the other side learns of it after them.
      if (this.#isHeld(flow)) flow.ended = true;
      else this.cut();
    });
  }

  #isHeld(flow: Flow): boolean {
    return flow.held || flow.pending > 0;
  }

  #arrive(side: Side, received: Buffer): void {
    const flow = this.#flows[side];
    flow.received += received.length;
    if (this.#blackholed) {
      this.#lostBytes = true;
      return;
    }
    const chunk = this.#inspect(this, side, received);
    // The trigger may have ended the connection or opened the hole.
    if (this.#cut) return;
    if (this.#blackholed) {
      this.#lostBytes = true;
      return;
    }
    if (chunk.length > 0) flow.queue.push(chunk);
    this.#flush(side);
  }

  #flush(side: Side): void {
    const flow = this.#flows[side];
    const from = this.#socket(side);
    const to = this.#other(side);
    if (!to || to.destroyed || this.#blackholed) return;
    while (flow.queue.length > 0 && !this.#isHeld(flow)) {
      let chunk = flow.queue.shift() as Buffer;
      const last = chunk.length >= flow.budget;
      if (last) chunk = chunk.subarray(0, flow.budget);
      flow.budget -= chunk.length;
      flow.forwarded += chunk.length;
      if (last) {
        flow.queue.length = 0;
        // Only what the kernel has taken over survives a reset, so wait for that.
        if (chunk.length === 0) this.cut(flow.cutHow);
        else to.write(chunk, () => this.cut(flow.cutHow));
        // Whatever else arrives before the cut is lost.
        flow.held = true;
        return;
      }
      if (!to.write(chunk) && from && !from.isPaused()) {
        from.pause();
        to.once('drain', () => from.resume());
      }
    }
    if (flow.queue.length > 0 || !flow.ended || this.#isHeld(flow)) return;
    if (from?.destroyed) to.destroySoon();
    else if (!to.writableEnded) to.end();
  }

  /** Sets how much more may pass from a side before the connection is cut. */
  #limit(side: Side, bytes: number, how: CutHow): void {
    const flow = this.#flows[side];
    flow.budget = bytes;
    flow.cutHow = how;
    if (bytes === 0) this.cut(how);
    else this.#flush(side);
  }

  /** Stops passing on what the server says, its end included; it is read on and kept. */
  holdServerReplies(): void {
    this.#flows.server.held = true;
  }

  /** Stops passing on what the client says, its end included; it is read on and kept. */
  holdClientBytes(): void {
    this.#flows.client.held = true;
  }

  /** Ends both holds and passes on what was kept. */
  release(): void {
    for (const side of ['client', 'server'] as const) {
      this.#flows[side].held = false;
      this.#flush(side);
    }
  }

  /** Lets exactly so many more bytes from the server reach the client, then cuts both sides. */
  cutAfterServerBytes(bytes: number, how: CutHow = 'reset'): void {
    this.#limit('server', bytes, how);
  }

  /** Lets exactly so many more bytes from the client reach the server, then cuts both sides. */
  cutAfterClientBytes(bytes: number, how: CutHow = 'reset'): void {
    this.#limit('client', bytes, how);
  }

  /** Ends both connections now. What is held is lost. */
  cut(how: CutHow = 'reset'): void {
    this.#cut = true;
    for (const flow of Object.values(this.#flows)) flow.queue.length = 0;
    for (const socket of [this.#client, this.#server]) {
      if (!socket || socket.destroyed) continue;
      if (how === 'end') {
        socket.end(() => socket.destroy());
      } else if (socket.writableEnded && !socket.writableFinished && socket.writableLength === 0) {
        // Node loses a socket that it resets while its shutdown is under way: it never closes.
        socket.once('finish', () => socket.resetAndDestroy());
      } else {
        socket.resetAndDestroy();
      }
    }
  }

  /** From now on both sides talk into the void; neither notices. */
  blackhole(): void {
    this.#blackholed = true;
    for (const flow of Object.values(this.#flows)) {
      if (flow.queue.length > 0) this.#lostBytes = true;
      flow.queue.length = 0;
      if (flow.ended) this.#lostBytes = true;
    }
    this.#client.resume();
    this.#server?.resume();
  }

  /** Resets the connection to the client, while the server goes on to believe in it. */
  strand(): void {
    this.blackhole();
    this.#client.resetAndDestroy();
  }

  /** Ends holds, limits and the black hole. A connection that has lost bytes cannot go on and is reset. */
  heal(): void {
    // An end that happened inside of the hole has not been passed on either.
    const missed =
      this.#blackholed &&
      (this.#client.destroyed || this.#server?.destroyed || Object.values(this.#flows).some((flow) => flow.ended));
    const lost = this.#lostBytes || missed;
    this.#blackholed = false;
    if (lost) {
      this.cut();
      return;
    }
    for (const flow of Object.values(this.#flows)) flow.budget = Number.POSITIVE_INFINITY;
    this.release();
  }

  /** For the proxy: keeps a side held until a trigger's action is done. */
  holdWhile(side: Side, work: PromiseLike<unknown>): void {
    const flow = this.#flows[side];
    flow.pending++;
    const done = () => {
      flow.pending--;
      this.#flush(side);
    };
    work.then(done, done);
  }
}

/** A TCP proxy that misbehaves on command. Everything it does follows from bytes and calls, nothing from time. */
export class FaultProxy {
  readonly host = HOST;
  readonly #options: FaultProxyOptions;
  readonly #connections = new Set<FaultConnection>();
  readonly #triggers = new Set<Trigger>();
  readonly #waitingForConnection: { count: number; resolve: (connection: FaultConnection) => void }[] = [];
  #server: Server | undefined;
  #port = 0;
  #count = 0;
  #holdServer = false;
  #holdClient = false;
  #blackholed = false;
  #limits: { side: Side; bytes: number; how: CutHow }[] = [];
  #failure: unknown;

  /** Use {@link startFaultProxy}. */
  constructor(options: FaultProxyOptions) {
    this.#options = options;
  }

  get port(): number {
    return this.#port;
  }

  /** The connections that are open, oldest first. */
  get connections(): FaultConnection[] {
    return [...this.#connections];
  }

  /** How many connections have come in so far. */
  get accepted(): number {
    return this.#count;
  }

  /** Starts to take connections. Done by {@link startFaultProxy}. */
  async listen(): Promise<void> {
    if (this.#server) return;
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#accept(socket));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(this.#port || this.#options.port || 0, HOST, () => resolve());
    });
    this.#server = server;
    this.#port = (server.address() as { port: number }).port;
  }

  #accept(socket: Socket): void {
    const { target } = this.#options;
    const where = this.#blackholed ? undefined : typeof target === 'function' ? target() : target;
    const connection = new FaultConnection(++this.#count, socket, where, (from, side, chunk) =>
      this.#inspect(from, side, chunk),
    );
    this.#connections.add(connection);
    void connection.closed.then(() => this.#connections.delete(connection));
    if (this.#holdServer) connection.holdServerReplies();
    if (this.#holdClient) connection.holdClientBytes();
    for (const { side, bytes, how } of this.#limits) {
      if (side === 'server') connection.cutAfterServerBytes(bytes, how);
      else connection.cutAfterClientBytes(bytes, how);
    }
    for (const waiter of this.#waitingForConnection.splice(0)) {
      if (connection.id >= waiter.count) waiter.resolve(connection);
      else this.#waitingForConnection.push(waiter);
    }
  }

  #inspect(connection: FaultConnection, side: Side, received: Buffer): Buffer {
    const tap = side === 'client' ? this.#options.onClientBytes : this.#options.onServerBytes;
    const replaced = tap?.(received, connection);
    const chunk = Buffer.isBuffer(replaced) ? replaced : received;
    for (const trigger of this.#triggers) {
      if (trigger.side !== side || (trigger.only && trigger.only !== connection)) continue;
      const before = trigger.seen.get(connection);
      let seen = before ? Buffer.concat([before, chunk]) : chunk;
      if (seen.length > PREDICATE_BYTES) seen = seen.subarray(seen.length - PREDICATE_BYTES);
      trigger.seen.set(connection, seen);
      if (!trigger.matches(seen, connection)) continue;
      // The next match needs bytes of its own.
      trigger.seen.delete(connection);
      if (--trigger.times <= 0) this.#triggers.delete(trigger);
      const work = trigger.fire(connection) as PromiseLike<unknown> | undefined;
      if (typeof work?.then === 'function') {
        work.then(undefined, (error: unknown) => {
          this.#failure ??= error;
        });
        connection.holdWhile(side, work);
      }
    }
    return chunk;
  }

  /**
   * Sets a trigger: when the bytes of a side match on a connection, the action runs before the chunk that completed the
   * match goes on.
   * @param options.times how often it works, once by default
   * @param options.connection only on this connection
   * @returns a function that removes the trigger
   */
  when(
    side: Side,
    matches: BytesPredicate,
    action: TriggerAction,
    options: { times?: number; connection?: FaultConnection } = {},
  ): () => void {
    const trigger: Trigger = {
      side,
      matches,
      fire: action,
      times: options.times ?? 1,
      seen: new WeakMap(),
      only: options.connection,
    };
    this.#triggers.add(trigger);
    return () => this.#triggers.delete(trigger);
  }

  /**
   * Resolves with the connection on which the bytes of a side match. Unlike the action of {@link when}, what follows
   * runs after the matching chunk has gone on.
   */
  waitFor(
    side: Side,
    matches: BytesPredicate,
    options: { timeoutMs?: number; connection?: FaultConnection } = {},
  ): Promise<FaultConnection> {
    const { timeoutMs = 10_000, connection } = options;
    return new Promise((resolve, reject) => {
      const remove = this.when(
        side,
        matches,
        (matched) => {
          clearTimeout(timer);
          resolve(matched);
        },
        { connection },
      );
      const timer = setTimeout(() => {
        remove();
        reject(new Error(`fault proxy: the awaited ${side} bytes did not come within ${timeoutMs} ms`));
      }, timeoutMs);
    });
  }

  /** Resolves with the connection that comes in next, or with number `id` if that is still to come. */
  nextConnection(id = this.#count + 1): Promise<FaultConnection> {
    return new Promise((resolve) => this.#waitingForConnection.push({ count: id, resolve }));
  }

  /** {@link FaultConnection.holdServerReplies} on every connection, also on those to come. */
  holdServerReplies(): void {
    this.#holdServer = true;
    for (const connection of this.#connections) connection.holdServerReplies();
  }

  /** {@link FaultConnection.holdClientBytes} on every connection, also on those to come. */
  holdClientBytes(): void {
    this.#holdClient = true;
    for (const connection of this.#connections) connection.holdClientBytes();
  }

  /** Ends all holds. */
  release(): void {
    this.#holdServer = false;
    this.#holdClient = false;
    for (const connection of this.#connections) connection.release();
  }

  /** Lets each connection, also those to come, pass so many more bytes from the server and then cuts it. */
  cutAfterServerBytes(bytes: number, how: CutHow = 'reset'): void {
    this.#limits.push({ side: 'server', bytes, how });
    for (const connection of this.#connections) connection.cutAfterServerBytes(bytes, how);
  }

  /** Lets each connection, also those to come, pass so many more bytes from the client and then cuts it. */
  cutAfterClientBytes(bytes: number, how: CutHow = 'reset'): void {
    this.#limits.push({ side: 'client', bytes, how });
    for (const connection of this.#connections) connection.cutAfterClientBytes(bytes, how);
  }

  /** Ends every open connection now; new ones are welcome. */
  cut(how: CutHow = 'reset'): void {
    for (const connection of this.#connections) connection.cut(how);
  }

  /** Swallows everything silently from now on; new connections are accepted by the kernel and hear nothing. */
  blackhole(): void {
    this.#blackholed = true;
    for (const connection of this.#connections) connection.blackhole();
  }

  /** Refuses new connections (ECONNREFUSED). Open ones stay; {@link cut} them too to look like a dead machine. */
  refuse(): void {
    this.#server?.close();
    this.#server = undefined;
  }

  /**
   * Ends every fault: holds, limits, black hole, refusal. Connections that have lost bytes are reset. Triggers stay.
   */
  async heal(): Promise<void> {
    this.#holdServer = false;
    this.#holdClient = false;
    this.#blackholed = false;
    this.#limits = [];
    for (const connection of this.#connections) connection.heal();
    await this.listen();
  }

  /** Ends everything. Throws what a trigger's action has thrown asynchronously, so that no failure is overlooked. */
  async close(): Promise<void> {
    this.#triggers.clear();
    this.refuse();
    const closing = [...this.#connections].map((connection) => connection.closed);
    for (const connection of this.#connections) connection.cut();
    await Promise.all(closing);
    if (this.#failure !== undefined) throw this.#failure;
  }
}

/** Starts a proxy on 127.0.0.1. */
export async function startFaultProxy(options: FaultProxyOptions): Promise<FaultProxy> {
  const proxy = new FaultProxy(options);
  await proxy.listen();
  return proxy;
}

/** A predicate: the bytes hold this text or these bytes. */
export function holds(needle: string | Buffer): BytesPredicate {
  return (bytes) => bytes.includes(needle);
}
