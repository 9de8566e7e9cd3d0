import { afterEach, describe, expect, it } from 'vitest';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { info } from '../../codecs/tds/write.js';
import { BYTES, type Cutter, EngineRig, type MadeUp, WHOLE } from '../kit/engine.js';
import { randomness } from '../kit/random.js';
import { CLIENT_SIZE, type MadeUpTdsDatabase, TdsEngine } from '../kit/tds-engine.js';
import { tdsMadeUp } from '../kit/tds-made-up.js';
import { messagesIn, SCRIPTS, ScriptedClient, words } from '../kit/tds-scripts.js';
import { Died, type ToldOptions, ToldRig } from '../kit/told.js';

/**
 * A TDS session and its shadow: whatever the bytes are cut into, the shadow has said what the session has said, in the same packets; and
 * wherever the gateway dies, what the peer goes on with gives the client messages that continue.
 */

type Rig = ToldRig<MadeUpTdsDatabase>;

const rigs: Rig[] = [];
afterEach(() => {
  for (const rig of rigs.splice(0)) rig.stop();
});

function told(options: ToldOptions<MadeUpTdsDatabase>): Rig {
  const rig = new ToldRig(options);
  rigs.push(rig);
  return rig;
}

/** A session as text. */
function written(capsule: unknown): string {
  return JSON.stringify(capsule, (_, value: unknown) => {
    if (value instanceof Map || value instanceof Set) return [...value];
    if (typeof value === 'bigint') return `${value}n`;
    return value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : value;
  });
}

/** The shadow is where the session is, in all that can be told of both. */
function alike(rig: Rig, what: string): void {
  const { shadow, session, received } = rig;
  expect(Buffer.compare(Buffer.concat(shadow.saidFrom(0)!), rig.said), what).toBe(0);
  expect(shadow.received, what).toBe(received);
  const [mine, theirs] = [session.capsule(), shadow.session!.capsule()].map(written);
  if (mine !== theirs) expect(theirs, what).toBe(mine);
}

/** A cutter of pieces of any length up to a most. */
function pieces(below: (limit: number) => number, most: number): Cutter {
  return (left) => 1 + below(Math.min(left, most));
}

/** A request that its client cancels, and an Attention that comes when all is answered. */
const CANCELLED = ['tm begin', 'insert a', 'waitfor', 'attention', 'select 2', 'attention', 'tm rollback', 'select 1'];

/** What the gateway says to a client that waits: see `reassure` of the rig. */
const SIGN = Buffer.from(info({ number: 0, class: 0, message: 'waiting', server: 'outlive' }, TDS_7_4)).toString('hex');

/** A client and what it sent and heard, whoever served it. */
class Talk {
  readonly client = new ScriptedClient();
  sent: Buffer = Buffer.alloc(0);
  heard: Buffer = Buffer.alloc(0);
  #read = 0;

  /** What it sends next. */
  next(step: string): Buffer {
    const message = this.client.message(step);
    this.sent = Buffer.concat([this.sent, message]);
    return message;
  }

  /** All that it heard so far. */
  hear(heard: Buffer): void {
    this.heard = heard;
    const messages = messagesIn(heard);
    for (const message of messages.slice(this.#read)) this.client.read(message);
    this.#read = messages.length;
  }
}

/** What a client hears that stays with one gateway and one server. */
function direct(script: readonly string[], announces: boolean): string[] {
  const engine = new TdsEngine({ announces });
  const client = new ScriptedClient();
  for (const step of script) {
    const before = engine.messages().length;
    engine.say(client.message(step));
    for (const message of engine.messages().slice(before)) client.read(message);
  }
  return words(engine.messages());
}

/** Somebody goes on with the session of a rig that is dead; the client sends what did not come, and the rest. */
function goOn(rig: Rig, protocol: MadeUp<MadeUpTdsDatabase>, talk: Talk, rest: readonly string[], what: string): void {
  rig.bury();
  const { shadow } = rig;
  const lacks = shadow.saidFrom(talk.heard.length);
  if (lacks === null) throw new Error(`${what}: the client knows what nobody else does`);
  const inherited = { session: shadow.session!, database: rig.database };
  const next = new EngineRig(WHOLE, {}, inherited, undefined, undefined, protocol);
  const before = Buffer.concat([talk.heard, ...lacks]);
  const hear = () => talk.hear(Buffer.concat([before, next.heard()]));
  const { received } = shadow;
  next.adopt();
  next.say(talk.sent.subarray(received));
  hear();
  for (const step of rest) {
    next.say(talk.next(step));
    hear();
  }
}

describe.each([true, false])('with a server that tells of transactions in text: %s', (announces) => {
  const protocol = tdsMadeUp(announces, [CLIENT_SIZE, 1000]);

  describe.each(Object.entries({ ...SCRIPTS, 'an Attention': CANCELLED }))('%s', (name, script) => {
    const wanted = direct(script, announces);
    const long = name.includes('long') || name === 'reads';
    /** Long answers come in larger pieces: each piece is compared. */
    const most = long ? 3000 : 60;

    /** Lets the client speak until the gateway dies or stops, then goes on elsewhere, and compares. @returns false when it never ended */
    function through(rig: Rig, what: string, cut: () => Cutter = () => WHOLE): boolean {
      const talk = new Talk();
      let at = 0;
      let over = false;
      try {
        for (; at < script.length && !over; at++) {
          rig.say(talk.next(script[at]), cut());
          talk.hear(rig.heard());
          over = rig.delivered < rig.records.length;
        }
      } catch (error) {
        if (!(error instanceof Died)) throw error;
        over = true;
        at++;
      }
      if (!over) return false;
      talk.hear(rig.heard());
      goOn(rig, protocol, talk, script.slice(at), what);
      const heard = words(messagesIn(talk.heard)).map((message) => message.replaceAll(SIGN, ''));
      expect(heard, what).toEqual(wanted);
      expect(rig.database.applied, what).toEqual([]);
      return true;
    }

    it('is followed, whole, byte by byte, and in pieces of any length', () => {
      const { where, below } = randomness();
      const bytes = long ? pieces(below, most) : BYTES;
      const cuts: [Cutter, Cutter][] = [
        [WHOLE, WHOLE],
        [BYTES, WHOLE],
        [WHOLE, bytes],
        [BYTES, bytes],
        ...Array.from({ length: 6 }, (): [Cutter, Cutter] => [pieces(below, 40), pieces(below, most)]),
      ];
      for (const [at, [cut, cutServer]] of cuts.entries()) {
        const what = `cuts ${at}, ${where}`;
        const rig = told({ protocol, cutServer, local: at % 3 === 0, onEven: (one) => alike(one, what) });
        const talk = new Talk();
        for (const step of script) {
          rig.say(talk.next(step), cut, at % 2 === 0);
          talk.hear(rig.heard());
        }
        expect(words(messagesIn(talk.heard)), what).toEqual(wanted);
        expect(rig.follower.failed, what).toBe(0);
      }
    });

    it('is followed by a peer that comes at any moment', () => {
      const { where, below } = randomness();
      const cutServer = pieces(below, most);
      let inputs = 0;
      for (let comesAfter = 0; comesAfter <= inputs; comesAfter += 1 + below(6)) {
        const rig = told({ protocol, cutServer, comesAfter });
        const talk = new Talk();
        for (const step of script) {
          rig.say(talk.next(step), pieces(below, 30));
          talk.hear(rig.heard());
        }
        inputs = Math.max(inputs, rig.inputs - 30);
        const what = `came after ${comesAfter} inputs, ${where}`;
        if (rig.replica.followed) alike(rig, what);
        expect(words(messagesIn(talk.heard)), what).toEqual(wanted);
      }
    });

    it('goes on when the gateway dies at any record, or when only so many have come', () => {
      for (let diesAt = 2; through(told({ protocol, diesAt }), `dies at ${diesAt}`); diesAt++);
      for (let reach = 2; through(told({ protocol, reach }), `reaches ${reach}`); reach++);
      const { where, below } = randomness();
      const cut = () => pieces(below, 20);
      const step = () => 1 + below(long ? 20 : 8);
      for (let at = 2; ; at += step()) {
        const rig = told({ protocol, diesAt: at, cutServer: pieces(below, most) });
        if (!through(rig, `dies at ${at} in pieces, ${where}`, cut)) break;
      }
      for (let at = 2; ; at += step()) {
        const rig = told({ protocol, reach: at, cutServer: pieces(below, most) });
        if (!through(rig, `reaches ${at} in pieces, ${where}`, cut)) break;
      }
    });

    it('goes on when the gateway dies while it looks for another server', () => {
      const { where, below } = randomness();
      const probe = told({ protocol });
      const talk = new Talk();
      for (const step of script) {
        probe.say(talk.next(step));
        talk.hear(probe.heard());
      }
      for (let n = 0; n < 60; n++) {
        const end = below(40);
        const rig = told(n % 2 === 0 ? { protocol, diesAt: 2 + end } : { protocol, reach: 2 + end });
        if (n % 3 === 0) rig.loseBefore = below(talk.sent.length);
        else rig.loseAfter = 1 + below(probe.heard().length);
        through(rig, `run ${n}, ${where}`);
      }
    });

    it('goes on when the gateway dies that has just shown its client that it is not forgotten', () => {
      const { where, below } = randomness();
      for (let loseAfter = 1; ; loseAfter += 1 + below(long ? 900 : 8)) {
        const rig = told({ protocol, cutServer: pieces(below, 400) });
        rig.loseAfter = loseAfter;
        rig.onLost = () => {
          rig.reassure('waiting');
          throw new Died();
        };
        if (!through(rig, `lost after ${loseAfter}, ${where}`)) break;
      }
    });

    it('takes along what nobody has read and what never left, when it is moved', () => {
      const { where, below } = randomness();
      for (let run = 0; run < 30; run++) {
        const what = `run ${run}, ${where}`;
        const rig = told({ protocol, cutServer: pieces(below, most) });
        const talk = new Talk();
        const at = below(script.length);
        for (const step of script.slice(0, at)) {
          rig.say(talk.next(step));
          talk.hear(rig.heard());
        }
        const message = talk.next(script[at]);
        const read = below(message.length + 1);
        rig.say(message.subarray(0, read), pieces(below, 30));
        talk.hear(rig.heard());
        const outstanding = below(rig.heard().length + 1);
        rig.replica.standstill({}, message.subarray(read), outstanding, below(outstanding + 1));
        rig.bury();
        expect(rig.shadow, what).toMatchObject({ complete: true, received: talk.sent.length });
        goOn(rig, protocol, talk, script.slice(at + 1), what);
        expect(words(messagesIn(talk.heard)), what).toEqual(wanted);
      }
    });
  });
});
