import {
  ClientClosedError,
  castGrpcError,
  Etcd3,
  EtcdInvalidAuthTokenError,
  type IOptions,
  isRecoverableError,
} from 'etcd3';
import { CodedError } from '../../core/contract/index.js';

/** gRPC's options of a call: when it fails, as time of day in ms. */
interface Deadline {
  readonly deadline: number;
}

export interface StoreOptions {
  /** `http://host:port` or `https://host:port`, all of one kind. */
  readonly endpoints: readonly string[];
  /** PEM. Without `ca` the usual authorities count. */
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string } | null;
  readonly auth: { readonly user: string; readonly password: string } | null;
}

interface Endpoint {
  readonly url: string;
  client: Etcd3;
}

/** How long to wait before all endpoints are tried again, within one call. */
const PAUSE_MS = 50;

/**
 * Calls to etcd (gRPC) with deadlines. The endpoint that answered last is asked first, and when it does not answer in its share of the
 * time, it gets a new connection for later and the next endpoint is asked: an old connection to a host that was cut off could stay
 * mute for minutes after the cut is mended, until TCP tries again.
 */
export class Store {
  /** When the store last answered, on the clock `performance.now()`; 0 when it never did. */
  heard = 0;
  /** Called after the connection in use was given up: streams of it are to be opened anew. */
  onSwitch: () => void = () => {};
  readonly #options: StoreOptions;
  readonly #endpoints: readonly Endpoint[];
  #current = 0;
  #closed = false;

  constructor(options: StoreOptions) {
    this.#options = options;
    this.#endpoints = options.endpoints.map((url) => ({ url, client: this.#connect(url) }));
  }

  /** The client of the endpoint in use, for streams. */
  get client(): Etcd3 {
    return this.#endpoints[this.#current].client;
  }

  /**
   * Makes a call, on other endpoints when the first does not answer; it can therefore take effect twice.
   * Rejects with OUTLIVE_LEASE_STORE at the latest after `budget` ms.
   *
   * @param what what is asked, for messages
   */
  async call<T>(what: string, budget: number, make: (client: Etcd3, options: Deadline) => Promise<T>): Promise<T> {
    if (budget < 1) throw failed(what, this.#endpoints[this.#current].url, new Error('no time was left for it'));
    const end = performance.now() + budget;
    const share = budget / Math.min(this.#endpoints.length, 3);
    for (let tries = 1; ; tries++) {
      const index = this.#current;
      const endpoint = this.#endpoints[index];
      const { client } = endpoint;
      const wait = Math.min(share, end - performance.now());
      let reason: Error;
      try {
        const answer = await within(wait, make(client, { deadline: Date.now() + wait }));
        this.heard = performance.now();
        return answer;
      } catch (error) {
        reason = error instanceof Error ? castGrpcError(error) : new Error(String(error));
      }
      if (!worthAnother(reason)) throw failed(what, endpoint.url, reason);
      if (this.#closed) throw failed(what, endpoint.url, new Error('the gateway is being stopped'));
      // Another call may have switched already.
      if (endpoint.client === client) {
        endpoint.client = this.#connect(endpoint.url);
        client.close();
        if (this.#current === index) this.#current = (index + 1) % this.#endpoints.length;
        this.onSwitch();
      }
      const pause = tries % this.#endpoints.length === 0 ? PAUSE_MS : 0;
      if (performance.now() + pause >= end) throw failed(what, endpoint.url, reason);
      if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  /**
   * Renews an etcd lease. Rejects with OUTLIVE_LEASE_STORE at the latest after `budget` ms.
   * @returns its length from the moment when etcd got this, in seconds; 0 when there is no such lease any more
   */
  renew(id: string, budget: number): Promise<number> {
    return this.call('renew a lease', budget, async (client, options) => {
      const stream = await client.leaseClient.leaseKeepAlive(options);
      return new Promise<number>((resolve, reject) => {
        stream.on('data', (answer) => {
          resolve(Number(answer.TTL));
          stream.end();
        });
        stream.on('error', reject);
        stream.on('end', () => reject(Object.assign(new Error('etcd ended the stream'), { code: UNAVAILABLE })));
        stream.write({ ID: id });
      });
    });
  }

  /** Ends all connections; calls under way fail. */
  close(): void {
    this.#closed = true;
    for (const { client } of this.#endpoints) client.close();
  }

  #connect(url: string): Etcd3 {
    const { tls, auth } = this.#options;
    return new Etcd3({
      hosts: [url],
      ...(tls?.ca === undefined && tls?.cert === undefined
        ? {}
        : {
            credentials: {
              rootCertificate: (tls.ca === undefined ? null : Buffer.from(tls.ca)) as Buffer,
              certChain: tls.cert === undefined ? undefined : Buffer.from(tls.cert),
              privateKey: tls.key === undefined ? undefined : Buffer.from(tls.key),
            },
          }),
      ...(auth === null ? {} : { auth: { username: auth.user, password: auth.password } }),
      defaultCallOptions: ({ isStream }) => (isStream ? {} : { deadline: Date.now() + DIAL_MS }),
      // Who is asked next, and when, is decided in `call`; the package's own breaker would refuse calls for 5 s after an outage.
      faultHandling: { host: () => PLAIN, global: PLAIN },
      grpcOptions: {
        // A connection that was given up must not be found again by the next client.
        'grpc.use_local_subchannel_pool': 1,
        'grpc.initial_reconnect_backoff_ms': 100,
        'grpc.min_reconnect_backoff_ms': 100,
        'grpc.max_reconnect_backoff_ms': 1000,
        // The environment's proxy is for the web.
        'grpc.enable_http_proxy': 0,
      },
    });
  }
}

/** Status codes of gRPC. */
const DEADLINE_EXCEEDED = 4;
const UNAVAILABLE = 14;

/** Whether a call may succeed on another connection: the network, a member without a leader, a token of a log-in that has expired. */
function worthAnother(reason: Error): boolean {
  const ended = reason instanceof ClientClosedError || reason instanceof EtcdInvalidAuthTokenError;
  return ended || isRecoverableError(reason);
}

/** Limit of calls that are not ours: the package's own log-in. */
const DIAL_MS = 2000;

type Policy = NonNullable<NonNullable<IOptions['faultHandling']>['global']>;

/** A policy (of the package cockatiel, which etcd3 uses) that does nothing but call. */
const PLAIN = {
  execute: async (call: (context: unknown) => unknown) => call({ signal: new AbortController().signal }),
} as unknown as Policy;

/** Settles as `promise` does, or rejects after `ms` as gRPC does when a deadline is exceeded. */
function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const late = () => reject(Object.assign(new Error('no answer in time'), { code: DEADLINE_EXCEEDED }));
    const timer = setTimeout(late, ms);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function failed(what: string, url: string, cause: Error): CodedError {
  const message = `etcd could not be asked to ${what} (last at ${url}): ${cause.message}`;
  return new CodedError('OUTLIVE_LEASE_STORE', 'network', message, { cause });
}
