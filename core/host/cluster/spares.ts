import { createHash } from 'node:crypto';
import type { Codec, Identity, Log, LoginResult } from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import type { ServerConfig } from '../config/index.js';
import { codeOf, detach, logIn } from './login.js';
import { LAST, type Turns } from './logins.js';
import type { Outside } from './outside.js';
import { popularController } from './waits.js';

/** A server as spares see it. Each server is one object. */
export interface SpareHost {
  readonly config: ServerConfig;
  readonly logins: Turns;
}

/** A session that was logged in beforehand. */
export interface Spare {
  readonly wire: Wire;
  readonly rest: Uint8Array;
  readonly login: LoginResult;
  /** When the login was done. */
  readonly since: number;
}

export interface SparesOptions {
  readonly codec: Codec;
  readonly outside: Outside;
  readonly log: Log;
  readonly perIdentity: number;
  readonly total: number;
}

/** Logins for spares at a time on one server: few, they must not be felt. */
const FILLERS = 2;
/** An identity without sessions keeps its spares for this time. */
const IDLE_MS = 60_000;
/** What is left over on a server that was promoted is kept for this time, for sessions that come late. */
const LEFTOVER_MS = 30_000;
/** After a refusal the identity is not tried on that server again for this time. */
const REFUSED_MS = 30_000;
/** After a failure the server is not tried again for this time. */
const FAILED_MS = 1000;
const TEND_MS = 5000;
const MAX_IDENTITIES = 1000;
/** Nobody sends this much to an idle session unless something is wrong. */
const MAX_REST = 64 * 1024;

const LOGIN_TIMEOUT_MS = 10_000;

interface Held {
  readonly host: SpareHost;
  readonly owner: Owner;
  readonly wire: Wire;
  readonly login: LoginResult;
  readonly since: number;
  rest: Uint8Array;
}

interface Owner {
  readonly key: string;
  identity: Identity;
  readonly startup: unknown;
  lastUsed: number;
  /** Wires that were handed to sessions; the closed ones are weeded out now and then. */
  readonly given: Set<Wire>;
  readonly held: Map<SpareHost, Held[]>;
  readonly filling: Map<SpareHost, number>;
  readonly notBefore: Map<SpareHost, number>;
}

/**
 * Keeps sessions logged in on hot standbys. A session that was opened on a hot standby survives the promotion and becomes
 * writable, so that after a failover sessions go on without a storm of logins.
 */
export class Spares {
  readonly #options: SparesOptions;
  readonly #stop = popularController();
  readonly #owners = new Map<string, Owner>();
  readonly #busy = new Map<SpareHost, number>();
  readonly #notBefore = new Map<SpareHost, number>();
  #standbys: readonly SpareHost[] = [];
  #primary: SpareHost | null = null;
  #primarySince = 0;
  #count = 0;
  #filling = 0;
  #cancelTimer: (() => void) | null = null;

  constructor(options: SparesOptions) {
    this.#options = options;
  }

  /** Spares at hand. */
  get count(): number {
    return this.#count;
  }

  /** Spares at hand on one server. */
  on(host: SpareHost): number {
    let sum = 0;
    for (const { held } of this.#owners.values()) sum += held.get(host)?.length ?? 0;
    return sum;
  }

  /** Says where spares are to be kept: nowhere new while nobody is the primary, because the standby has better things to do then. */
  place(primary: SpareHost | null, standbys: readonly SpareHost[]): void {
    if (primary !== this.#primary) this.#primarySince = this.#options.outside.now();
    this.#primary = primary;
    this.#standbys = standbys;
    this.#fill();
  }

  /** The server is never to be used again as it is: lets its spares go. */
  leave(host: SpareHost): void {
    for (const { held } of this.#owners.values()) for (const one of [...(held.get(host) ?? [])]) this.#drop(one);
  }

  /** A session of this identity asks for a connection: hands out a spare on `host`, or null. */
  take(host: SpareHost, identity: Identity, startup: unknown): Spare | null {
    if (this.#options.perIdentity === 0 || this.#stop.signal.aborted) return null;
    const owner = this.#owner(identity, startup);
    if (owner === null) return null;
    const list = owner.held.get(host) ?? [];
    // The oldest first: it is the surest to have come through the promotion.
    for (let held = list.shift(); held !== undefined; held = list.shift()) {
      this.#count--;
      detach(held.wire);
      if (!held.wire.open) continue;
      owner.given.add(held.wire);
      return held;
    }
    this.#fill();
    return null;
  }

  /** A session of this identity got a connection by an ordinary login. */
  given(identity: Identity, startup: unknown, wire: Wire): void {
    if (this.#options.perIdentity === 0 || this.#stop.signal.aborted) return;
    this.#owner(identity, startup)?.given.add(wire);
    this.#fill();
  }

  /** Closes everything. */
  stop(): void {
    this.#stop.abort();
    this.#cancelTimer?.();
    for (const owner of this.#owners.values()) this.#dropAll(owner);
    this.#owners.clear();
  }

  #owner(identity: Identity, startup: unknown): Owner | null {
    const key = keyOf(identity, startup);
    let owner = this.#owners.get(key);
    if (owner === undefined) {
      if (this.#owners.size >= MAX_IDENTITIES) return null;
      const maps = { given: new Set<Wire>(), held: new Map(), filling: new Map(), notBefore: new Map() };
      owner = { key, identity, startup, lastUsed: 0, ...maps };
      this.#owners.set(key, owner);
      this.#tendLater();
    }
    owner.lastUsed = this.#options.outside.now();
    return owner;
  }

  // ------------------------------------------------------------------------------------------------------------- filling

  #fill(): void {
    if (this.#primary === null || this.#stop.signal.aborted) return;
    for (const host of this.#standbys) {
      while ((this.#busy.get(host) ?? 0) < FILLERS) {
        const owner = this.#neediest(host);
        if (owner === null || !this.#makeRoom(owner)) break;
        void this.#add(host, owner);
      }
    }
  }

  /** Whose turn it is: the one that has least. */
  #neediest(host: SpareHost): Owner | null {
    const now = this.#options.outside.now();
    if (now < (this.#notBefore.get(host) ?? 0)) return null;
    let neediest: Owner | null = null;
    let least = this.#options.perIdentity;
    for (const owner of this.#owners.values()) {
      const has = countOn(owner, host);
      if (has >= least || now < (owner.notBefore.get(host) ?? 0)) continue;
      neediest = owner;
      least = has;
    }
    return neediest;
  }

  /** When all places are taken, one who has none may take one from who has most. */
  #makeRoom(owner: Owner): boolean {
    if (this.#count + this.#filling < this.#options.total) return true;
    let richest: Owner | null = null;
    let most = held(owner) + 1;
    for (const other of this.#owners.values()) {
      const has = held(other);
      if (has > most) [richest, most] = [other, has];
    }
    const victim = [...(richest?.held.values() ?? [])]
      .reduce<Held[]>((a, b) => (b.length > a.length ? b : a), [])
      .at(-1);
    if (victim === undefined) return false;
    this.#drop(victim);
    return true;
  }

  async #add(host: SpareHost, owner: Owner): Promise<void> {
    const { codec, outside, log } = this.#options;
    const { signal } = this.#stop;
    bump(this.#busy, host, 1);
    bump(owner.filling, host, 1);
    this.#filling++;
    try {
      const { identity, startup } = owner;
      const request = { codec, server: host.config, identity, startup, timeoutMs: LOGIN_TIMEOUT_MS, signal };
      const login = await host.logins.run(LAST, signal, () => logIn(outside, request));
      if (login.ok) this.#hold(host, owner, login);
      else {
        owner.notBefore.set(host, outside.now() + REFUSED_MS);
        log.warn({ server: host.config.name, code: login.error.code }, 'the server refused a spare session');
      }
    } catch (error) {
      this.#notBefore.set(host, outside.now() + FAILED_MS);
      if (!signal.aborted)
        log.debug({ server: host.config.name, code: codeOf(error) }, 'no spare session could be had');
    } finally {
      bump(this.#busy, host, -1);
      bump(owner.filling, host, -1);
      this.#filling--;
    }
    this.#fill();
  }

  #hold(host: SpareHost, owner: Owner, { wire, rest, login, since }: Spare): void {
    if (this.#stop.signal.aborted || this.#owners.get(owner.key) !== owner || !wire.open) {
      wire.destroy();
      return;
    }
    const one: Held = { host, owner, wire, login, since, rest };
    let list = owner.held.get(host);
    if (list === undefined) owner.held.set(host, (list = []));
    list.push(one);
    this.#count++;
    // What it is told while it is idle (its parameters change with the promotion) belongs to whoever gets it.
    wire.onData = (chunk) => {
      one.rest = one.rest.length === 0 ? chunk : Buffer.concat([one.rest, chunk]);
      if (one.rest.length > MAX_REST) this.#drop(one);
    };
    wire.onClose = () => {
      this.#drop(one);
      // A server that ends idle sessions would otherwise be logged in to without pause.
      this.#notBefore.set(host, this.#options.outside.now() + FAILED_MS);
    };
    wire.resume();
  }

  // ------------------------------------------------------------------------------------------------------------ weeding

  #tendLater(): void {
    this.#cancelTimer ??= this.#options.outside.after(TEND_MS, () => {
      this.#cancelTimer = null;
      this.#tend();
      if (this.#owners.size > 0) this.#tendLater();
    });
  }

  #tend(): void {
    const now = this.#options.outside.now();
    for (const owner of this.#owners.values()) {
      for (const wire of owner.given) if (!wire.open) owner.given.delete(wire);
      if (owner.given.size > 0) owner.lastUsed = now;
      else if (now - owner.lastUsed >= IDLE_MS) {
        this.#owners.delete(owner.key);
        this.#dropAll(owner);
        continue;
      }
      if (this.#primary === null || now - this.#primarySince < LEFTOVER_MS) continue;
      for (const one of [...(owner.held.get(this.#primary) ?? [])]) this.#drop(one);
    }
    this.#fill();
  }

  #dropAll(owner: Owner): void {
    for (const list of owner.held.values()) for (const one of [...list]) this.#drop(one);
  }

  #drop(one: Held): void {
    const list = one.owner.held.get(one.host);
    const index = list?.indexOf(one) ?? -1;
    if (index === -1) return;
    list!.splice(index, 1);
    this.#count--;
    detach(one.wire);
    one.wire.destroy();
  }
}

function countOn(owner: Owner, host: SpareHost): number {
  return (owner.held.get(host)?.length ?? 0) + (owner.filling.get(host) ?? 0);
}

function held(owner: Owner): number {
  let sum = 0;
  for (const list of owner.held.values()) sum += list.length;
  for (const number of owner.filling.values()) sum += number;
  return sum;
}

function bump(map: Map<SpareHost, number>, host: SpareHost, by: number): void {
  map.set(host, (map.get(host) ?? 0) + by);
}

/** Sessions with equal keys can stand in for each other at login. The key gives no secret away. */
function keyOf(identity: Identity, startup: unknown): string {
  return createHash('sha256')
    .update(canonical([identity, startup]))
    .digest('base64');
}

/** Plain data as a text that is equal for equal data, whatever the order of keys. */
function canonical(value: unknown): string {
  if (value instanceof Uint8Array) return `0x${Buffer.from(value).toString('hex')}`;
  if (typeof value === 'bigint') return `${value}n`;
  if (value instanceof Map) return `map${canonical([...value])}`;
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'undefined';
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  members.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`).join()}}`;
}
