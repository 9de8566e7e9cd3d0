import { serialize } from 'node:v8';
import { afterEach, describe, expect, it } from 'vitest';
import { pack, packPosition, RECORD } from '../../core/cluster/records.js';
import { Follower } from '../../core/host/pair/follower.js';
import type { Replica, Subject } from '../../core/host/pair/replica.js';
import { Shipper } from '../../core/host/pair/shipper.js';
import { direct, ROLLED_BACK, SCRIPTS } from '../kit/conversations.js';
import { BY_MARKER, BYTES, type Cutter, EngineRig, WHOLE } from '../kit/engine.js';
import { randomness } from '../kit/random.js';
import { Died, OPENING, silent, type ToldOptions, ToldRig } from '../kit/told.js';

/**
 * A session and its shadow: whatever the bytes are cut into, the shadow has said what the session has said; and wherever the gateway dies, what
 * the peer goes on with gives the client a stream that continues, and every statement takes effect once.
 */

const rigs: ToldRig[] = [];
afterEach(() => {
  for (const rig of rigs.splice(0)) rig.stop();
});

function told(options: ToldOptions = {}): ToldRig {
  const rig = new ToldRig(options);
  rigs.push(rig);
  return rig;
}

const printed = (bytes: Uint8Array) =>
  Buffer.from(bytes)
    .toString('latin1')
    .replace(/[^\x20-\x7e]/g, '.');

function same(seen: Uint8Array, expected: Uint8Array, what: string): void {
  if (Buffer.compare(seen, expected) !== 0) expect(printed(seen), what).toBe(printed(expected));
}

/** What a shadow has said since the start. */
const saidBy = ({ shadow }: ToldRig): Buffer => Buffer.concat(shadow.saidFrom(0)!);

/** A session as text. What it knows of the database is numbered anew in each gateway (`PostgresSession.epoch`). */
function written(capsule: unknown): string {
  return JSON.stringify(capsule, (key, value: unknown) => {
    if (key === 'epoch') return undefined;
    if (value instanceof Map || value instanceof Set) return [...value];
    if (typeof value === 'bigint') return `${value}n`;
    return value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : value;
  });
}

/** The shadow is where the session is, in all that can be told of both. */
function alike(rig: ToldRig, what: string): void {
  same(saidBy(rig), rig.said, what);
  const { shadow, session, received } = rig;
  if (shadow.received !== received) expect(shadow.received, what).toBe(received);
  const [mine, theirs] = [session.capsule(), shadow.session!.capsule()].map(written);
  if (mine !== theirs) expect(theirs, what).toBe(mine);
}

/** A cutter of pieces of any length up to a most. */
function pieces(below: (limit: number) => number, most: number): Cutter {
  return (left) => 1 + below(Math.min(left, most));
}

/** Somebody goes on with the session of a rig that is dead; the client sends what did not come, and the rest. */
function goOn(rig: ToldRig, sent: Buffer, rest: readonly Buffer[], what: string): Buffer {
  rig.bury();
  const heard = rig.heard();
  const lacks = rig.shadow.saidFrom(heard.length);
  if (lacks === null) throw new Error(`${what}: the client knows what nobody else does`);
  const next = new EngineRig(WHOLE, {}, { session: rig.shadow.session!, database: rig.database });
  const { received } = rig.shadow;
  next.adopt();
  next.say(sent.subarray(received));
  for (const step of rest) next.say(step);
  return Buffer.concat([heard, ...lacks, next.heard()]);
}

/** Lets the client speak until the gateway dies or stops, then goes on elsewhere, and compares. @returns false when it never ended */
function through(rig: ToldRig, steps: readonly Buffer[], what: string, client: () => Cutter = () => WHOLE): boolean {
  const expected = direct(steps);
  let sent = Buffer.alloc(0);
  let at = 0;
  let over = false;
  const wanted = Buffer.concat([expected.heard]);
  try {
    for (; at < steps.length && !over; at++) {
      sent = Buffer.concat([sent, steps[at]]);
      rig.say(steps[at], client());
      over = rig.delivered < rig.records.length;
    }
  } catch (error) {
    if (!(error instanceof Died)) throw error;
    over = true;
    at++;
  }
  if (!over) return false;
  same(goOn(rig, sent, steps.slice(at), what), wanted, what);
  const { applied } = rig.database;
  if (applied.join() !== expected.applied.join()) expect(applied, what).toEqual(expected.applied);
  return true;
}

const provable = Object.entries(SCRIPTS).filter(([name]) => name !== ROLLED_BACK);

describe.each(Object.entries(SCRIPTS))('%s', (_, steps) => {
  it('is followed, whole, byte by byte, and in pieces of any length', () => {
    const { where, below } = randomness();
    const cuts: [Cutter, Cutter][] = [
      [WHOLE, WHOLE],
      [BYTES, WHOLE],
      [WHOLE, BYTES],
      [BYTES, BYTES],
      ...Array.from({ length: 10 }, (): [Cutter, Cutter] => [pieces(below, 40), pieces(below, 60)]),
    ];
    for (const [at, [client, cutServer]] of cuts.entries()) {
      const what = `cuts ${at}, ${where}`;
      const rig = told({ cutServer, local: at % 3 === 0, onEven: (one) => alike(one, what) });
      for (const step of steps) rig.say(step, client, at % 2 === 0);
      same(rig.heard(), direct(steps).heard, what);
      expect(rig.follower.failed, what).toBe(0);
    }
  });

  it('is followed by a peer that comes at any moment', () => {
    const probe = told({ cutServer: BYTES });
    for (const step of steps) probe.say(step);
    const inputs = probe.records.length;
    const { where, below } = randomness();
    for (let comesAfter = 0; comesAfter < inputs; comesAfter += 1 + below(6)) {
      const rig = told({ cutServer: BYTES, comesAfter });
      for (const step of steps) rig.say(step, pieces(below, 30));
      const what = `came after ${comesAfter} inputs, ${where}`;
      if (rig.replica.followed) alike(rig, what);
      same(rig.heard(), direct(steps).heard, what);
    }
  });
});

describe.each(provable)('%s, and the gateway dies', (_, steps) => {
  it('at every record', () => {
    for (let diesAt = 2; through(told({ diesAt }), steps, `dies at ${diesAt}`); diesAt++);
    const { where, below } = randomness();
    for (let diesAt = 2; ; diesAt += 1 + below(8)) {
      const rig = told({ diesAt, cutServer: pieces(below, 30) });
      if (!through(rig, steps, `dies at ${diesAt} in pieces, ${where}`, () => pieces(below, 20))) break;
    }
  });

  it('when only so many of its records have come', () => {
    for (let reach = 2; through(told({ reach }), steps, `reaches ${reach}`); reach++);
    const { where, below } = randomness();
    for (let reach = 2; ; reach += 1 + below(8)) {
      const rig = told({ reach, cutServer: pieces(below, 30) });
      if (!through(rig, steps, `reaches ${reach} in pieces, ${where}`, () => pieces(below, 20))) break;
    }
  });

  it('at every record, and its commits are proved by rows', () => {
    const proof = BY_MARKER;
    for (let diesAt = 2; through(told({ diesAt, proof }), steps, `dies at ${diesAt}`); diesAt++);
    for (let reach = 2; through(told({ reach, proof }), steps, `reaches ${reach}`); reach++);
  });

  it('while it looks for another server', () => {
    const { where, below } = randomness();
    const probe = new EngineRig();
    for (const step of steps) probe.say(step);
    for (let n = 0; n < 60; n++) {
      const end = below(40);
      const rig = told(n % 2 === 0 ? { diesAt: 2 + end } : { reach: 2 + end });
      if (n % 3 === 0) rig.loseBefore = below(150);
      else rig.loseAfter = 1 + below(probe.heard().length);
      through(rig, steps, `run ${n}, ${where}`);
    }
  });
});

it('commits nothing twice that is repeated while the peer lags behind', () => {
  for (const name of ['a pipeline with one Sync', 'a pipeline with a Sync each', 'a transaction']) {
    const steps = SCRIPTS[name];
    const probe = new EngineRig();
    for (const step of steps) probe.say(step);
    for (let loseAfter = 1; loseAfter < probe.heard().length; loseAfter += 5) {
      for (let reach = 2; reach < 24; reach++) {
        const rig = told({ reach });
        rig.loseAfter = loseAfter;
        through(rig, steps, `${name}: lost after ${loseAfter} bytes, ${reach} records have come`);
      }
    }
  }
});

/** A conversation with answers of several pieces. */
const LONG = [...SCRIPTS['a transaction'], ...SCRIPTS.extended, ...SCRIPTS['a copy in a transaction']];

describe('a session that goes from gateway to gateway', () => {
  it('is the same for its client, whoever of them dies when', () => {
    const { where, below } = randomness();
    const expected = direct(LONG);
    for (let run = 0; run < 40; run++) {
      const what = `run ${run}, ${where}`;
      let rig = told({ cutServer: pieces(below, 40), diesAt: 2 + below(20) });
      let heard: Uint8Array[] = [];
      let sent: Buffer = Buffer.alloc(0);
      /** Bytes of the client that gateways before this one were given, of what it is given. */
      let base = 0;
      const pass = (bytes: Buffer): void => {
        try {
          rig.say(bytes, pieces(below, 30));
          return;
        } catch (error) {
          if (!(error instanceof Died)) throw error;
        }
        rig.bury();
        const before = rig.heard();
        const lacks = rig.shadow.saidFrom(before.length)!;
        heard = [...heard, before, ...lacks];
        base += rig.shadow.received;
        const inherited = { session: rig.shadow.session!, database: rig.database };
        rig = told({
          cutServer: pieces(below, 40),
          inherited,
          comesAfter: Number.POSITIVE_INFINITY,
          diesAt: 4 + below(60),
        });
        try {
          rig.adopt();
          rig.join();
          rig.settle();
        } catch (error) {
          // Nobody knows of it yet: another one could only begin with what this one began with.
          if (!(error instanceof Died)) throw error;
          rig = told({ cutServer: pieces(below, 40), inherited, comesAfter: Number.POSITIVE_INFINITY });
          rig.adopt();
          rig.join();
          rig.settle();
        }
        pass(sent.subarray(base));
      };
      for (const step of LONG) {
        sent = Buffer.concat([sent, step]);
        pass(step);
      }
      same(Buffer.concat([...heard, rig.heard()]), expected.heard, what);
      expect(rig.database.applied, what).toEqual(expected.applied);
    }
  });

  it('takes along what nobody has read and what never left, when it is moved', () => {
    const { where, below } = randomness();
    const expected = direct(LONG);
    for (let run = 0; run < 40; run++) {
      const rig = told({ cutServer: pieces(below, 40) });
      const at = below(LONG.length);
      const sent = Buffer.concat(LONG.slice(0, at + 1));
      for (const step of LONG.slice(0, at)) rig.say(step);
      const read = below(LONG[at].length + 1);
      rig.say(LONG[at].subarray(0, read), pieces(below, 30));
      // Of what was delivered, the client has acknowledged some, and the last of it never left.
      const outstanding = below(rig.heard().length + 1);
      const unsent = below(outstanding + 1);
      rig.replica.standstill({}, LONG[at].subarray(read), outstanding, unsent);
      rig.bury();
      const what = `run ${run}, ${where}`;
      const { shadow } = rig;
      expect(shadow, what).toMatchObject({
        complete: true,
        received: sent.length,
        acknowledged: rig.heard().length - outstanding,
      });
      // What the rest of its words led to never left either.
      expect(shadow.unsent, what).toBe(unsent + shadow.said - rig.heard().length);
      expect(shadow.tailBytes, what).toBe(shadow.said - shadow.acknowledged);
      same(Buffer.concat(shadow.unacknowledged), Buffer.concat(shadow.saidFrom(shadow.acknowledged)!), what);
      expect(rig.replica.waiting, what).toBe(0);
      same(goOn(rig, sent, LONG.slice(at + 1), what), expected.heard, what);
      expect(rig.database.applied, what).toEqual(expected.applied);
    }
  });
});

describe('what the peer keeps of what a client was told', () => {
  it('is what the client has not acknowledged', () => {
    const { where, below } = randomness();
    const rig = told();
    for (const step of LONG) {
      rig.say(step);
      rig.acknowledged += below(rig.heard().length - rig.acknowledged + 1);
      rig.replica.look();
      rig.settle();
      const { shadow } = rig;
      expect(shadow.acknowledged, where).toBe(rig.acknowledged);
      same(Buffer.concat(shadow.unacknowledged), rig.said.subarray(rig.acknowledged), where);
      expect(shadow.saidFrom(rig.acknowledged - 1)).toBeNull();
      expect(shadow.saidFrom(rig.said.length)).toEqual([]);
      expect(shadow.saidFrom(rig.said.length + 1)).toBeNull();
    }
    rig.acknowledged = rig.heard().length;
    rig.replica.look();
    rig.settle();
    expect(rig.shadow.tailBytes).toBe(0);
  });

  it('has what was said without an input in its place', () => {
    const rig = told({ onEven: (one) => alike(one, 'the welcome') });
    rig.say(LONG[0]);
    for (let at = 1; at < 5; at++) {
      // As the welcome: said to the client, and to nobody else.
      rig.aside('outlive: waiting');
      rig.settle();
      rig.say(LONG[at]);
    }
    expect(rig.heard().toString('latin1').split('waiting')).toHaveLength(5);
  });
});

it('cannot be gone on with before all has come that its host had acknowledged when it began to hold acknowledgements', () => {
  const promised = 60;
  const rig = told({ promised });
  rig.say(LONG[0]);
  expect(rig.received).toBeLessThan(promised);
  expect(rig.follower.count).toEqual({ total: 1, adoptable: 0 });
  for (const step of LONG.slice(1)) {
    rig.say(step);
    expect(rig.follower.count).toEqual({ total: 1, adoptable: rig.received < promised ? 0 : 1 });
  }
  expect(rig.received).toBeGreaterThan(promised);
});

describe('a record that does not fit', () => {
  const misfits: Record<string, [number, Uint8Array]> = {
    'an unknown kind': [99, new Uint8Array(1)],
    'an unknown call': [RECORD.call, serialize(['close'])],
    'no call at all': [RECORD.call, new Uint8Array([1, 2, 3])],
    'a capsule of nothing': [RECORD.capsule, serialize({ capsule: null })],
    'garbage for a capsule': [RECORD.capsule, new Uint8Array(100)],
    'an acknowledgement of what was never said': [RECORD.acked, packPosition(1e9)],
    'a position of another length': [RECORD.acked, new Uint8Array(7)],
    'words of a server that cannot be': [RECORD.server, Buffer.from('D\0\0\0\x01', 'latin1')],
  };
  it.each(Object.entries(misfits))('is refused: %s', (_, [kind, bytes]) => {
    const rig = told();
    rig.say(LONG[0]);
    rig.follower.record(kind, rig.replica.id, bytes);
    expect(rig.follower.failed).toBe(1);
    expect(rig.lost).toEqual([rig.replica.id]);
    expect(rig.follower.count).toEqual({ total: 0, adoptable: 0 });
    // What still comes of it leads to nothing.
    rig.say(LONG[1]);
    expect(rig.follower.failed).toBe(1);
    // It is told anew, and followed from there.
    rig.shipper.retell(rig.replica.id);
    rig.replica.done();
    rig.say(LONG[2]);
    expect(rig.follower.count).toEqual({ total: 1, adoptable: 1 });
    alike(rig, 'told anew');
    same(rig.heard(), direct(LONG.slice(0, 3)).heard, 'the client');
  });

  it('is not told anew without end', () => {
    const rig = told();
    for (let n = 0; n < 20; n++) {
      rig.shipper.retell(rig.replica.id);
      rig.say(LONG[n % 5]);
    }
    expect(rig.replica.followed).toBe(false);
    expect(rig.records.filter(({ kind }) => kind === RECORD.open)).toHaveLength(6);
    same(rig.heard(), direct(Array.from({ length: 20 }, (_, n) => LONG[n % 5])).heard, 'the client');
  });

  it('of a listener that is not configured here is counted', () => {
    const follower = new Follower(
      () => null,
      silent,
      () => 0,
    );
    follower.record(RECORD.open, 1, pack(OPENING));
    follower.record(RECORD.client, 1, new Uint8Array(3));
    expect(follower).toMatchObject({ failed: 1, count: { total: 0, adoptable: 0 } });
  });
});

describe('a session that has ended', () => {
  it('is forgotten, and so is one on an address that went elsewhere', () => {
    const rig = told();
    rig.say(LONG[0]);
    expect(rig.follower.of(OPENING.address)).toEqual([rig.shadow]);
    expect(rig.follower.of('10.0.0.2')).toEqual([]);
    rig.replica.close();
    rig.settle();
    expect(rig.follower.count.total).toBe(0);
    const other = told();
    other.say(LONG[0]);
    other.follower.forget(OPENING.address);
    expect(other.follower.count.total).toBe(0);
  });

  it('is not gone on with when its client was to be disconnected', () => {
    const rig = told();
    rig.say(Buffer.concat([SCRIPTS['simple queries'][0], Buffer.from('X\0\0\0\x04', 'latin1')]));
    expect(rig.session.state).toBe('closed');
    expect(rig.shadow.session!.state).toBe('closed');
    expect(rig.shadow.saidFrom(rig.said.length)).toBeNull();
    expect(rig.follower.count).toEqual({ total: 1, adoptable: 0 });
    expect(rig.follower.of(OPENING.address)).toEqual([]);
  });
});

/** A session of which only the way of its words is of interest. */
class Speaker implements Subject {
  readonly cluster = 'c';
  readonly database = 'd';
  readonly durable: boolean = true;
  delivered: string[] = [];
  proceeded = 0;
  capsule: unknown = {};
  open = true;
  replica!: Replica;

  constructor(
    private readonly name: string,
    shipper: Shipper,
    private readonly all: string[],
  ) {
    this.replica = shipper.replicate(this);
  }

  get written(): number {
    return this.delivered.join('').length;
  }
  outstanding = () => 0;
  opening = () => (this.open ? OPENING : null);
  snapshot = () => (this.capsule === null ? null : { capsule: this.capsule, received: 0, origin: null });
  queued = () => 0;
  unheard = () => [];
  descriptor = () => -1;
  facts = () => undefined;
  gate = () => null;
  deliver(bytes: Uint8Array): void {
    this.delivered.push(Buffer.from(bytes).toString());
    this.all.push(`${this.name}${Buffer.from(bytes)}`);
  }
  eased = () => {};
  proceed(): void {
    this.proceeded++;
    this.all.push(`${this.name}!`);
  }

  /** The server says something, and the client is told that. */
  hear(text: string): void {
    this.replica.input(RECORD.server, Buffer.from(text));
    this.replica.say(Buffer.from(text));
    this.replica.done();
  }
}

describe('what waits for the peer', () => {
  function place(stops = false) {
    const all: string[] = [];
    const records: { kind: number; session: number }[] = [];
    let base = 0;
    const nothing = () => {};
    const shipper = new Shipper(
      {
        append: (kind, session) => records.push({ kind, session }) - 1 - base,
        keeps: false,
        begin: nothing,
        inherit: nothing,
        end: nothing,
        grown: () => false,
      },
      stops,
    );
    ends.push(() => shipper.stop());
    const [a, b] = ['a', 'b'].map((name) => new Speaker(name, shipper, all));
    const up = () => {
      base = records.length;
      shipper.linkUp();
      for (const { replica } of [a, b]) replica.done();
    };
    const ack = (all = records.length - base) => shipper.acked(all);
    return { shipper, records, a, b, all, up, ack };
  }
  const ends: (() => void)[] = [];
  afterEach(() => {
    for (const end of ends.splice(0)) end();
  });

  it('is released in the order in which it was said, and nothing before the record that it follows from is held', () => {
    const { shipper, a, b, all, up, ack, records } = place();
    up();
    ack();
    const before = records.length;
    a.hear('1');
    b.hear('2');
    a.hear('3');
    expect(all).toEqual([]);
    expect(shipper.waiting).toBe(3);
    // The first so many records: below that position all is held.
    ack(before + 1);
    expect(all).toEqual(['a1']);
    ack(before + 1);
    ack(before + 2);
    expect(all).toEqual(['a1', 'b2']);
    expect(a.replica.durable()).toBe(false);
    expect(a.replica.durable()).toBe(false);
    ack(before + 3);
    expect(all).toEqual(['a1', 'b2', 'a3', 'a!']);
    expect(shipper.waiting).toBe(0);
    // Of what nobody was told anything, nobody waits.
    a.replica.say(Buffer.from('4'));
    expect(all).toHaveLength(4);
    ack();
    expect(all.at(-1)).toBe('a4');
  });

  it('is released when the peer is gone, and goes on at once without one', () => {
    const { shipper, a, all, up } = place();
    up();
    a.hear('1');
    expect(a.replica.durable()).toBe(false);
    shipper.linkDown();
    expect(all).toEqual(['a1', 'a!']);
    a.hear('2');
    expect(a.replica.durable()).toBe(true);
    expect(all.at(-1)).toBe('a2');
    expect(shipper.count).toEqual({ sessions: 2, followed: 0 });
  });

  it('waits on where a listener wants that, until another peer has all of it', () => {
    const { shipper, a, all, up, ack, records } = place(true);
    up();
    ack();
    a.hear('1');
    shipper.linkDown();
    a.hear('2');
    expect(a.replica.durable()).toBe(false);
    expect(all).toEqual([]);
    up();
    expect(records.at(-1)).toEqual({ kind: RECORD.capsule, session: 2 });
    ack();
    expect(all).toContain('a1');
    expect(all).toContain('a2');
    expect(all).toContain('a!');
    expect(all.indexOf('a1')).toBeLessThan(all.indexOf('a2'));
  });

  it('is delivered when its session ends, and void when somebody else goes on with it', () => {
    const { shipper, a, b, all, up, ack } = place();
    up();
    a.hear('1');
    b.hear('2');
    a.replica.close();
    expect(all).toEqual(['a1']);
    b.replica.leave();
    ack();
    expect(all).toEqual(['a1']);
    expect(shipper.count.sessions).toBe(0);
  });

  it('tells when the peer holds a record, or is gone, or takes too long', async () => {
    const { shipper, a, up, ack, records } = place();
    up();
    ack();
    a.hear('1');
    const held = shipper.confirmed(records.length - 1, 10_000);
    ack();
    await held;
    a.hear('2');
    await expect(shipper.confirmed(records.length - 1, 1)).rejects.toThrow('in time');
    const gone = shipper.confirmed(records.length - 1, 10_000);
    shipper.linkDown();
    await expect(gone).rejects.toThrow('gone');
  });

  it('is not told of what cannot be moved, and told later of what cannot be told yet', () => {
    const { shipper, a, b, records, up } = place();
    a.open = false;
    b.capsule = null;
    up();
    a.hear('1');
    b.hear('2');
    expect(records).toEqual([]);
    // A session that is told of must not be in doubt; one that is not is not waited for.
    expect(a.delivered).toEqual(['1']);
    expect(b.delivered).toEqual(['2']);
    b.capsule = {};
    b.hear('3');
    expect(b.delivered).toEqual(['2', '3']);
    expect(records.map(({ kind }) => kind)).toEqual([RECORD.open, RECORD.capsule]);
    expect(shipper.count).toEqual({ sessions: 2, followed: 2 });
    // At a point that nothing tells of it is forgotten when it cannot be told whole.
    b.capsule = null;
    b.replica.renew();
    expect(records.at(-1)).toEqual({ kind: RECORD.close, session: b.replica.id });
    expect(b.replica.followed).toBe(false);
  });
});
