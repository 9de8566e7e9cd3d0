import { describe, expect, it } from 'vitest';
import { direct, Q, ROLLED_BACK, S, SCRIPTS, x } from '../kit/conversations.js';
import { BYTES, type Cutter, EngineRig, WHOLE } from '../kit/engine.js';

/**
 * The engine with the PostgreSQL codec, without sockets: whatever way the bytes of both sides are cut, the client hears the same
 * as from the server itself; and wherever the server is lost, every statement takes effect once.
 */

const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

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
