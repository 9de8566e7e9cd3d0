import { serialize } from 'pg-protocol';
import { describe, expect, it } from 'vitest';
import { BYTES, type Cutter, EngineRig, MadeUpDatabase, MadeUpServer, WHOLE } from '../kit/engine.js';

/**
 * The engine with the PostgreSQL codec, without sockets: whatever way the bytes of both sides are cut, the client hears the same
 * as from the server itself; and wherever the server is lost, every statement takes effect once.
 */

const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

const Q = (text: string): Buffer => serialize.query(text);
const x = (text: string, name = ''): Buffer =>
  Buffer.concat([
    serialize.parse({ name, text }),
    serialize.bind({ statement: name }),
    serialize.describe({ type: 'P' }),
    serialize.execute(),
  ]);
const S = serialize.sync() as Buffer;
const d = (text: string) => serialize.copyData(Buffer.from(text));
const c = serialize.copyDone() as Buffer;

/** Begun and ended in one text: the gateway does not judge what it did, and in flight its outcome is unknown (08007). */
const ROLLED_BACK = 'a transaction rolled back in one Query';

/** Sessions, as the steps that a client takes; between two of them it waits. */
const SCRIPTS: Readonly<Record<string, readonly Buffer[]>> = {
  'simple queries': [
    Q('select 3'),
    Q(''),
    Q('insert a'),
    Q('insert b returning'),
    Q('select fail'),
    Q('set x'),
    Q('select 1'),
  ],
  'a transaction': [Q('begin'), Q('insert a'), Q('select 2'), Q('insert b returning'), Q('commit'), Q('select 1')],
  'a failed transaction': [Q('begin'), Q('insert a'), Q('select fail'), Q('select 1'), Q('rollback'), Q('insert b')],
  'a failed transaction that commits': [Q('begin'), Q('insert a'), Q('select fail'), Q('commit'), Q('select 1')],
  'several statements in one': [
    Q('insert a; insert b; select 1'),
    Q('begin; insert c; commit'),
    Q('insert d; select fail'),
    Q('begin; insert f; commit; select fail'),
  ],
  [ROLLED_BACK]: [Q('begin; insert e; rollback; select 1'), Q('insert a')],
  extended: [
    Buffer.concat([x('select 2'), S]),
    Buffer.concat([x('insert a returning'), S]),
    Buffer.concat([x('select fail'), x('insert b'), S]),
    S,
    Buffer.concat([x('insert c', 'n'), S]),
  ],
  'a pipeline with a Sync each': [
    Buffer.concat([
      x('select 1'),
      S,
      x('insert a'),
      S,
      x('select fail'),
      S,
      x('insert b returning'),
      S,
      x('select 2'),
      S,
    ]),
  ],
  'a pipeline with one Sync': [
    Buffer.concat([x('begin'), x('insert a'), x('select 1'), x('commit'), S, Q('select 1')]),
  ],
  'a pipelined transaction': [
    Buffer.concat([Q('begin'), Q('insert a'), x('insert b returning'), S, Q('commit'), Q('insert c')]),
  ],
  'a copy': [Q('copy t from stdin'), Buffer.concat([d('one\n'), d('two\n'), c]), Q('select 1')],
  'a copy in a transaction': [
    Q('begin'),
    Buffer.concat([Q('copy t from stdin'), d('one\n'), c, Q('insert a')]),
    Q('commit'),
  ],
  'a copy, extended': [Buffer.concat([x('copy t from stdin'), S]), Buffer.concat([d('one\n'), c, S, x('insert a'), S])],
  'a copy that the client fails': [
    Q('copy t from stdin'),
    Buffer.concat([d('one\n'), serialize.copyFail('no')]),
    Q('insert a'),
  ],
};

interface Expected {
  readonly heard: Buffer;
  readonly applied: string[];
}

const answers = new Map<readonly Buffer[], Expected>();

/** What the server itself answers, and what it then holds. */
function direct(steps: readonly Buffer[]): Expected {
  let known = answers.get(steps);
  if (known === undefined) {
    const database = new MadeUpDatabase();
    const server = new MadeUpServer(database);
    known = { heard: Buffer.concat(steps.map((step) => server.feed(step))), applied: database.applied };
    answers.set(steps, known);
  }
  return known;
}

const printed = (bytes: Buffer) => bytes.toString('latin1').replace(/[^\x20-\x7e]/g, '.');

function check(rig: EngineRig, steps: readonly Buffer[], what: string): void {
  const expected = direct(steps);
  const heard = rig.heard();
  if (!heard.equals(expected.heard)) expect(printed(heard), what).toBe(printed(expected.heard));
  const { applied } = rig.database;
  if (applied.join() !== expected.applied.join()) expect(applied, what).toEqual(expected.applied);
}

const once = (at: number): Cutter => {
  let first = true;
  return (left) => {
    const size = first ? Math.min(at, left) : left;
    first = false;
    return size;
  };
};

describe.each(Object.entries(SCRIPTS))('%s', (_, steps) => {
  it('whole, byte by byte, and all at once', () => {
    for (const [client, server] of [
      [WHOLE, WHOLE],
      [BYTES, WHOLE],
      [WHOLE, BYTES],
      [BYTES, BYTES],
    ] as const) {
      for (const prompt of [true, false]) {
        const rig = new EngineRig(server);
        for (const step of steps) rig.say(step, client, prompt);
        check(rig, steps, `client ${client.name}, server ${server.name}, prompt ${prompt}`);
      }
    }
    const all = new EngineRig();
    all.say(Buffer.concat(steps));
    check(all, steps, 'all at once');
  });

  it('the client cut at every byte', () => {
    const bytes = Buffer.concat(steps);
    for (let at = 1; at < bytes.length; at++) {
      for (const prompt of [true, false]) {
        const rig = new EngineRig();
        rig.say(bytes, once(at), prompt);
        check(rig, steps, `cut at ${at}, prompt ${prompt}`);
      }
    }
  });

  it('the server cut at every byte', () => {
    const probe = new EngineRig();
    let total = 0;
    const counting = probe.session.backend.bind(probe.session);
    probe.session.backend = (chunk) => {
      total += chunk.length;
      counting(chunk);
    };
    for (const step of steps) probe.say(step);
    for (let at = 1; at < total; at++) {
      let arrived = 0;
      const rig = new EngineRig((left) => {
        const size = arrived < at ? Math.min(left, at - arrived) : left;
        arrived += size;
        return size;
      });
      for (const step of steps) rig.say(step);
      check(rig, steps, `cut at ${at}`);
    }
  });
});

it(`long rows in pieces of any length (SEED=${SEED})`, () => {
  let state = SEED;
  const random = (n: number) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return 1 + ((state >> 8) % n);
  };
  const steps = [
    Q('select 3 big'),
    Buffer.concat([x('select 2 big'), S, x('insert a returning'), S]),
    Q('begin'),
    Q('select 4 big'),
    Q('commit'),
  ];
  for (let i = 0; i < 30; i++) {
    const rig = new EngineRig((left) => Math.min(left, random(i % 2 === 0 ? 200_000 : 20_000)));
    for (const step of steps) rig.say(step, () => random(100));
    check(rig, steps, `run ${i}`);
  }
});

const provable = Object.entries(SCRIPTS).filter(([name]) => name !== ROLLED_BACK);

describe.each(provable)('%s, and the server is lost', (_, steps) => {
  it('after every byte of its answers', () => {
    for (let at = 1; ; at++) {
      const rig = new EngineRig();
      rig.loseAfter = at;
      for (const step of steps) rig.say(step);
      if (rig.losses === 0) break;
      check(rig, steps, `lost after ${at}`);
    }
  });

  it('before every byte of the questions', () => {
    for (let at = 0; ; at++) {
      const rig = new EngineRig();
      rig.loseBefore = at;
      for (const step of steps) rig.say(step);
      if (rig.losses === 0) break;
      check(rig, steps, `lost before ${at}`);
    }
  });
});
