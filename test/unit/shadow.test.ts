import { afterEach, describe, expect, it } from 'vitest';
import { direct, ROLLED_BACK, SCRIPTS } from '../kit/conversations.js';
import { BYTES, type Cutter, EngineRig, WHOLE } from '../kit/engine.js';
import { randomness } from '../kit/random.js';
import { Died, type ToldOptions, ToldRig } from '../kit/told.js';

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
    for (let comes = 0; comes < inputs; comes += 1 + below(6)) {
      let left = comes;
      const rig = told({ cutServer: BYTES, late: true });
      const hear = rig['hear' as never] as (side: 'client' | 'server', chunk: Buffer) => void;
      rig['hear' as never] = ((side: 'client' | 'server', chunk: Buffer) => {
        hear.call(rig, side, chunk);
        if (left-- === 0) rig.join();
      }) as never;
      for (const step of steps) rig.say(step, pieces(below, 30));
      if (left < 0) alike(rig, `came after ${comes} inputs, ${where}`);
      same(rig.heard(), direct(steps).heard, `came after ${comes} inputs, ${where}`);
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
