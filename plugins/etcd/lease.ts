import type { IKeyValue, ITxnResponse } from 'etcd3';
import { CodedError, type Lease, type LeasePlugin, type Log, type Term } from '../../core/contract/index.js';
import type { Store } from './store.js';
import { Watches } from './watch.js';

/**
 * Part of a term that is not counted, since this machine's clock and that of the store do not run at the very same rate. NTP changes a
 * rate by at most 0.05 %; this is much more.
 */
const CLOCK_MARGIN = 0.01;

type Data = Readonly<Record<string, string>>;

/**
 * Terms in etcd. Below the prefix:
 *
 * - `terms/KEY`: {"owner", "epoch"}, attached to an etcd lease of its own, so it is gone when that lease ends;
 * - `epochs/KEY`: the last epoch of the key, for ever, raised in the transaction that makes the term;
 * - `members/NAME`: what a gateway gave to `join`, attached to an etcd lease.
 *
 * A term counts for its owner from the moment when its renewal was *asked for*; etcd counts from when it was answered, which is later,
 * and a new leader of etcd grants every lease its whole length again and an election timeout more. An owner whose `validUntil` has
 * passed has lost the term for good, even if etcd would still renew it: it has fallen silent, and an epoch has one beginning.
 */
export class EtcdLeases implements LeasePlugin {
  readonly ttl: number;
  readonly #store: Store;
  readonly #prefix: string;
  readonly #log: Log;
  readonly #watches: Watches;
  readonly #held = new Set<HeldLease>();
  readonly #stop = new AbortController();
  #member: Member | null = null;
  #looking: Promise<void> | null = null;
  #lookAgain = false;

  /** @param ttl ms, whole seconds; @param prefix ends with a slash */
  constructor(store: Store, ttl: number, prefix: string, log: Log) {
    this.#store = store;
    this.ttl = ttl;
    this.#prefix = prefix;
    this.#log = log;
    const start = Buffer.from(`${prefix}terms/`);
    const parse = (pair: IKeyValue) => (pair.value.length === 0 ? null : this.#term(pair));
    this.#watches = new Watches(store, { start, end: behind(start) }, parse, log);
    store.onSwitch = () => this.#watches.drop();
    void this.#beat();
  }

  get heard(): number {
    return this.#store.heard;
  }

  async join(name: string, data: Data): Promise<void> {
    await this.#member?.stop();
    const member = new Member(this.#store, Buffer.from(`${this.#prefix}members/${name}`), this.ttl, data, this.#log);
    this.#member = member;
    await member.start();
  }

  async members(): Promise<ReadonlyMap<string, Data>> {
    const start = Buffer.from(`${this.#prefix}members/`);
    const { kvs } = await this.#store.call('list the gateways', this.ttl / 2, (client, options) =>
      client.kv.range({ key: start, range_end: behind(start) }, options),
    );
    return new Map(kvs.map((pair) => [pair.key.subarray(start.length).toString(), readJson<Data>(pair)]));
  }

  async acquire(key: string, owner: string, heir = false): Promise<Lease | null> {
    for (const lease of this.#held) {
      if (lease.key !== key || performance.now() >= lease.validUntil) continue;
      return lease.owner === owner ? lease : null;
    }
    const end = performance.now() + this.ttl / 2;
    const left = () => end - performance.now();
    const term = Buffer.from(`${this.#prefix}terms/${key}`);
    const epochs = Buffer.from(`${this.#prefix}epochs/${key}`);
    const before = await this.#store.call('read a term', left(), (client, options) =>
      client.kv.txn({ success: [{ request_range: { key: term } }, { request_range: { key: epochs } }] }, options),
    );
    const [holder, last] = before.responses.map((response) => response.response_range.kvs[0]);
    if (holder !== undefined && !(heir && this.#term(holder).term.owner === owner)) return null;
    const epoch = last === undefined ? 1 : readEpoch(last) + 1;

    const asked = performance.now();
    const { ID, TTL } = await this.#store.call('grant a lease', left(), (client, options) =>
      client.leaseClient.leaseGrant({ TTL: this.ttl / 1000 }, options),
    );
    let taken: ITxnResponse;
    try {
      taken = await this.#store.call('take a term', left(), (client, options) =>
        client.kv.txn(
          {
            compare: [
              // What it is attached to from now on is the new lease: the old one ends, and nothing with it.
              { key: term, target: 'Mod', result: 'Equal', mod_revision: holder?.mod_revision ?? 0 },
              { key: epochs, target: 'Mod', result: 'Equal', mod_revision: last?.mod_revision ?? 0 },
            ],
            success: [
              { request_put: { key: term, value: Buffer.from(JSON.stringify({ owner, epoch })), lease: ID } },
              { request_put: { key: epochs, value: Buffer.from(String(epoch)) } },
            ],
            failure: [{ request_range: { key: term } }],
          },
          options,
        ),
      );
    } catch (error) {
      // It may have been taken all the same; then it must not stand in everybody's way.
      void this.#revoke(ID);
      throw error;
    }
    // A call may take effect twice: the second time the term is there, with our own lease.
    const ours = taken.succeeded || taken.responses[0]?.response_range.kvs[0]?.lease === ID;
    const valid = asked + Number(TTL) * 1000 * (1 - CLOCK_MARGIN);
    if (!ours || performance.now() >= valid || this.#stop.signal.aborted) {
      void this.#revoke(ID);
      return null;
    }
    const lease = new HeldLease(key, owner, epoch, valid, () => this.#release(lease, ID));
    this.#held.add(lease);
    void this.#renew(lease, ID);
    return lease;
  }

  async holder(key: string): Promise<Term | null> {
    const { kvs } = await this.#store.call('read a term', this.ttl / 2, (client, options) =>
      client.kv.range({ key: Buffer.from(`${this.#prefix}terms/${key}`) }, options),
    );
    return kvs.length === 0 ? null : this.#term(kvs[0]).term;
  }

  /** The first call of `changed` tells the holder as it is, as soon as the store has answered. */
  watch(key: string, changed: (holder: Term | null) => void): () => void {
    const stop = this.#watches.add(key, changed);
    this.#look();
    return stop;
  }

  /** Terms that were not released are not renewed any more, and end by themselves. */
  async close(): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    for (const lease of this.#held) lease.end();
    this.#watches.drop();
    await this.#member?.stop();
    this.#store.close();
  }

  async #renew(lease: HeldLease, id: string): Promise<void> {
    let pause = this.ttl / 3;
    for (;;) {
      await sleep(pause, lease.ended);
      if (lease.over) return;
      const asked = performance.now();
      const left = lease.validUntil - asked;
      let seconds: number;
      try {
        seconds = left <= 0 ? 0 : await this.#store.renew(id, Math.min(left, this.ttl / 3));
      } catch (error) {
        this.#log.warn({ key: lease.key, error: String(error) }, 'a term could not be renewed; trying again');
        pause = this.ttl / 12;
        continue;
      }
      if (lease.over) return;
      if (seconds === 0 || performance.now() >= lease.validUntil) break;
      lease.validUntil = asked + seconds * 1000 * (1 - CLOCK_MARGIN);
      pause = Math.max(0, this.ttl / 3 - (performance.now() - asked));
    }
    const { key, owner, epoch } = lease;
    this.#log.error({ key, owner, epoch }, 'the term is lost');
    lease.end();
    this.#held.delete(lease);
    // Where it only came too late, nobody need wait for its end.
    await this.#revoke(id);
  }

  async #release(lease: HeldLease, id: string): Promise<void> {
    if (lease.over) return;
    // From here on somebody else may get it.
    lease.validUntil = Math.min(lease.validUntil, performance.now());
    lease.end();
    this.#held.delete(lease);
    await this.#revoke(id);
  }

  #revoke(id: string): Promise<void> {
    return revoke(this.#store, id, this.ttl / 2, this.#log);
  }

  /** Looks at all terms now, for those who watch; when a look is under way, once more after it. */
  #look(): void {
    if (this.#looking !== null) {
      this.#lookAgain = true;
      return;
    }
    this.#looking = this.#lookOnce().finally(() => {
      this.#looking = null;
      if (this.#lookAgain && !this.#stop.signal.aborted) {
        this.#lookAgain = false;
        this.#look();
      }
    });
  }

  async #lookOnce(): Promise<void> {
    const start = Buffer.from(`${this.#prefix}terms/`);
    try {
      const { header, kvs } = await this.#store.call('look at the terms', this.ttl / 2, (client, options) =>
        client.kv.range({ key: start, range_end: behind(start) }, options),
      );
      const terms = kvs.map((pair) => [this.#term(pair), Number(pair.mod_revision)] as const);
      this.#watches.looked({
        revision: Number(header.revision),
        terms: new Map(terms.map(([{ key, term }, revision]) => [key, { term, revision }])),
      });
    } catch (error) {
      this.#log.debug({ error: String(error) }, 'the lease store did not answer');
      return;
    }
    if (!this.#stop.signal.aborted) await this.#watches.open(() => this.#look());
  }

  /** Keeps watchers right, and `heard` true, when nothing else asks the store. */
  async #beat(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      if (this.#watches.size > 0 || performance.now() - this.heard >= this.ttl / 3) this.#look();
      await sleep(this.ttl / 3, signal);
    }
  }

  #term(pair: IKeyValue): { key: string; term: Term } {
    const { owner, epoch } = readJson<Partial<Term>>(pair);
    if (typeof owner !== 'string' || typeof epoch !== 'number') throw foreign(pair);
    return { key: pair.key.subarray(`${this.#prefix}terms/`.length).toString(), term: { owner, epoch } };
  }
}

class HeldLease implements Lease {
  readonly #end = new AbortController();
  over = false;
  readonly release: () => Promise<void>;

  constructor(
    readonly key: string,
    readonly owner: string,
    readonly epoch: number,
    public validUntil: number,
    release: () => Promise<void>,
  ) {
    this.release = release;
  }

  /** Aborted when it is released or lost. */
  get ended(): AbortSignal {
    return this.#end.signal;
  }

  end(): void {
    this.over = true;
    this.#end.abort();
  }
}

/** This gateway's entry among the members, kept alive and made anew when the store lost it. */
class Member {
  readonly #store: Store;
  readonly #key: Buffer;
  readonly #ttl: number;
  readonly #data: Data;
  readonly #log: Log;
  readonly #stop = new AbortController();
  #id: string | null = null;

  constructor(store: Store, key: Buffer, ttl: number, data: Data, log: Log) {
    this.#store = store;
    this.#key = key;
    this.#ttl = ttl;
    this.#data = data;
    this.#log = log;
  }

  /** Enters it; rejects when the store cannot be asked, and goes on trying all the same. */
  async start(): Promise<void> {
    const first = this.#enter(this.#ttl / 2);
    void first.catch(() => {}).then(() => this.#keep());
    return first;
  }

  async stop(): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    if (this.#id !== null) await revoke(this.#store, this.#id, this.#ttl / 2, this.#log);
  }

  async #enter(budget: number): Promise<void> {
    const end = performance.now() + budget;
    const { ID } = await this.#store.call('grant a lease', budget, (client, options) =>
      client.leaseClient.leaseGrant({ TTL: this.#ttl / 1000 }, options),
    );
    if (this.#stop.signal.aborted) return;
    const value = Buffer.from(JSON.stringify(this.#data));
    await this.#store.call('join the gateways', end - performance.now(), (client, options) =>
      client.kv.put({ key: this.#key, value, lease: ID }, options),
    );
    this.#id = ID;
    if (this.#stop.signal.aborted) await revoke(this.#store, ID, this.#ttl / 2, this.#log);
  }

  async #keep(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await sleep(this.#ttl / 3, signal);
      if (signal.aborted) return;
      try {
        if (this.#id !== null && (await this.#store.renew(this.#id, this.#ttl / 3)) === 0) this.#id = null;
        if (this.#id === null && !signal.aborted) await this.#enter(this.#ttl / 2);
      } catch (error) {
        this.#log.debug({ error: String(error) }, 'this gateway could not tell the lease store that it is alive');
      }
    }
  }
}

/** Ends an etcd lease, and with it what is attached to it. Never rejects: it ends by itself otherwise. */
async function revoke(store: Store, id: string, budget: number, log: Log): Promise<void> {
  try {
    await store.call('end a lease', budget, (client, options) => client.leaseClient.leaseRevoke({ ID: id }, options));
  } catch (error) {
    log.debug({ error: String(error) }, 'a lease was not ended, and ends by itself');
  }
}

/** The key behind all keys that begin with `prefix`, whose last byte is a slash. */
function behind(prefix: Buffer): Buffer {
  const end = Buffer.from(prefix);
  end[end.length - 1]++;
  return end;
}

function readJson<T>(pair: IKeyValue): T {
  try {
    const value: unknown = JSON.parse(pair.value.toString());
    if (typeof value === 'object' && value !== null) return value as T;
  } catch {
    // Said below.
  }
  throw foreign(pair);
}

function readEpoch(pair: IKeyValue): number {
  const epoch = Number(pair.value.toString());
  if (!Number.isSafeInteger(epoch) || epoch < 0) throw foreign(pair);
  return epoch;
}

function foreign(pair: IKeyValue): CodedError {
  const message = `the value of ${pair.key.toString()} in etcd is not Outlive's; does something else use that prefix?`;
  return new CodedError('OUTLIVE_LEASE_STORE', 'config', message);
}

/** Waits, at most until the signal; a gateway does not stay alive for it. */
function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    timer.unref();
    signal.addEventListener('abort', done);
  });
}
