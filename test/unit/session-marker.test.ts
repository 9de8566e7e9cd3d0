import { describe, expect, it } from 'vitest';
import type { SessionCodec } from '../../core/contract/index.js';
import { markOf } from '../../core/session/proof.js';
import { direct, Q, ROLLED_BACK, S, SCRIPTS, x } from '../kit/conversations.js';
import { BY_MARKER, BYTES, type Cutter, EngineRig, WHOLE, waiting } from '../kit/engine.js';

/**
 * Commits proved by rows, without sockets: the row leaves with the commit or in front of it, wherever the server is lost every statement
 * takes effect once, and the client hears what a server itself would have said.
 */
const WAYS: Readonly<Record<string, (codec: SessionCodec) => SessionCodec>> = {
  'a row that leaves with its commit': (codec) => codec,
  'a commit that waits for its row': waiting,
};

const printed = (bytes: Buffer) => bytes.toString('latin1').replace(/[^\x20-\x7e]/g, '.');

describe.each(Object.entries(WAYS))('%s', (_way, change) => {
  const make = (cut: Cutter = WHOLE) => new EngineRig(cut, {}, null, BY_MARKER, change);

  function check(rig: EngineRig, steps: readonly Buffer[], what: string): void {
    const expected = direct(steps);
    const heard = rig.heard();
    if (!heard.equals(expected.heard)) expect(printed(heard), what).toBe(printed(expected.heard));
    if (rig.database.applied.join() !== expected.applied.join())
      expect(rig.database.applied, what).toEqual(expected.applied);
  }

  it.each(Object.entries(SCRIPTS))('%s: whole, byte by byte, and all at once', (_, steps) => {
    for (const client of [WHOLE, BYTES]) {
      for (const server of [WHOLE, BYTES]) {
        for (const prompt of [true, false]) {
          const rig = make(server);
          for (const step of steps) rig.say(step, client, prompt);
          check(rig, steps, `client ${client.name}, server ${server.name}, prompt ${prompt}`);
        }
      }
    }
    const rig = make();
    rig.say(Buffer.concat(steps));
    check(rig, steps, 'all at once');
  });

  describe.each(Object.entries(SCRIPTS).filter(([name]) => name !== ROLLED_BACK))(
    '%s, and the server is lost',
    (_, steps) => {
      it('after every byte of its answers', () => {
        for (let at = 1; ; at++) {
          const rig = make();
          rig.loseAfter = at;
          for (const step of steps) rig.say(step);
          if (rig.losses === 0) break;
          check(rig, steps, `lost after ${at}`);
        }
      });

      it('before every byte of the questions', () => {
        for (let at = 0; ; at++) {
          const rig = make();
          rig.loseBefore = at;
          for (const step of steps) rig.say(step);
          if (rig.losses === 0) break;
          check(rig, steps, `lost before ${at}`);
        }
      });
    },
  );

  it('asks again when the server that was asked is lost too, with the same row', () => {
    const steps = [Q('begin'), Q('insert a'), Q('commit'), Q('select 1')];
    let twice = 0;
    for (let at = 1; ; at++) {
      for (let again = 1; again < 400; again += 7) {
        const rig = make();
        rig.loseAfter = at;
        for (const step of steps.slice(0, 2)) rig.say(step);
        const { lookups } = rig.database;
        const lose = rig.losses;
        rig.say(steps[2]);
        if (rig.losses > lose) {
          rig.loseAfter = again;
          rig.say(steps[3]);
        }
        check(rig, rig.losses > lose ? steps : steps.slice(0, 3), `lost after ${at}, and after ${again} more`);
        if (rig.database.lookups > lookups + 1) twice++;
        expect(rig.database.marks.size).toBeLessThanOrEqual(1);
        if (rig.losses === 0) {
          expect(at).toBeGreaterThan(50);
          return;
        }
      }
      if (at > 2000) throw new Error(`never ends, ${twice}`);
    }
  });

  it('leaves no row where nothing is written, or nothing commits', () => {
    const rig = make();
    for (const step of [
      [Q('begin'), Q('select 3'), Q('commit')],
      [Q('select 1'), Buffer.concat([x('select 2'), S])],
      [Q('begin'), Q('insert a'), Q('rollback')],
      [Q('begin'), Q('insert a'), Q('select fail'), Q('commit')],
    ].flat())
      rig.say(step);
    expect(rig.database.marks.size).toBe(0);
    expect(rig.database.applied).toEqual([]);
  });

  it('has another row for each commit, which nobody can tell from those before', () => {
    const rig = make();
    for (const step of [Q('insert a'), Q('begin'), Q('insert b'), Q('commit'), Buffer.concat([x('insert c'), S])])
      rig.say(step);
    expect([...rig.database.marks]).toEqual([1, 2, 3].map((number) => markOf(BY_MARKER, number).id));
    expect(new Set([...rig.database.marks].map((id) => id.length))).toEqual(new Set([32]));
    expect(rig.database.applied).toEqual(['insert a', 'insert b', 'insert c']);
  });

  describe('that is refused', () => {
    const TRANSACTIONS: Readonly<Record<string, readonly Buffer[]>> = {
      'of a transaction': [Q('begin'), Q('insert a'), Q('commit')],
      'of a transaction, extended': [Q('begin'), Buffer.concat([x('insert a'), S]), Buffer.concat([x('commit'), S])],
      'of a transaction in one Query': [Q('begin; insert a; commit; select 1')],
      'of a pipeline': [Q('begin'), Buffer.concat([x('insert a'), x('commit'), x('select 1'), S])],
      'of a statement that commits by itself': [Q('insert a')],
      'of such a statement, extended': [Buffer.concat([x('insert a'), S])],
    };
    it.each(Object.entries(TRANSACTIONS))('%s', (_, steps) => {
      for (const [code, told] of [
        ['42P01', '55000'],
        ['40001', '40001'],
        ['57014', '57014'],
      ]) {
        for (const cut of [WHOLE, BYTES]) {
          const rig = make(cut);
          rig.database.markFault = code;
          for (const step of steps) rig.say(step);
          const heard = printed(rig.heard());
          expect(rig.database.applied, code).toEqual([]);
          expect(heard.split(`C${told}`), code).toHaveLength(2);
          // Its last words: the error, and that no transaction is open.
          expect(heard.slice(heard.lastIndexOf(`C${told}`)).endsWith('Z....I'), heard).toBe(true);
          expect(heard.includes('CCOMMIT'), heard).toBe(false);
          if (told === '55000') expect(heard).toContain('OUTLIVE_MARK_REFUSED');
          // The session goes on, and commits again when the fault is mended.
          rig.database.markFault = null;
          const before = rig.heard().length;
          for (const step of [Q('begin'), Q('insert b'), Q('commit'), Q('insert c')]) rig.say(step);
          expect(rig.database.applied).toEqual(['insert b', 'insert c']);
          expect(printed(rig.heard().subarray(before))).toBe(
            printed(direct([Q('begin'), Q('insert b'), Q('commit'), Q('insert c')]).heard),
          );
        }
      }
    });
  });

  it.each([
    ['a transaction', [Q('begin'), Q('insert a'), Q('commit')]],
    ['a statement that commits by itself', [Q('insert a')]],
    ['the same, extended', [Buffer.concat([x('insert a'), S])]],
  ])('is found when it is there before its time: %s committed on a way that nobody told of', (_, steps) => {
    const rig = make();
    rig.database.marks.add(markOf(BY_MARKER, 1).id);
    for (const step of steps) rig.say(step);
    // The client is told of the commit that was; what was repeated in vain has no effect.
    expect(printed(rig.heard())).toBe(printed(direct(steps).heard));
    expect(rig.database.applied).toEqual([]);
    expect(rig.losses).toBe(0);
    rig.say(Q('insert b'));
    expect(rig.database.applied).toEqual(['insert b']);
  });
});

it('leaves statements alone that commit by themselves where their outcome may stay unknown', () => {
  const proof = { ...BY_MARKER, autocommit: 'unknown' } as const;
  const expected = direct([Q('insert a')]).heard.length;
  for (let at = 1; at <= expected; at++) {
    const rig = new EngineRig(WHOLE, {}, null, proof);
    rig.loseAfter = at;
    rig.say(Q('insert a'));
    expect(rig.database.marks.size).toBe(0);
    expect(rig.database.applied).toEqual(['insert a']);
    if (at < expected) expect(printed(rig.heard())).toContain('OUTLIVE_OUTCOME_UNKNOWN');
    for (const step of [Q('begin'), Q('insert b'), Q('commit')]) rig.say(step);
    expect(rig.database.marks.size).toBe(1);
  }
});

it('says that an outcome is unknown where nothing proves it', () => {
  const steps = [Q('begin'), Q('insert a'), Q('commit')];
  const rig = new EngineRig(WHOLE, {}, null, { ...BY_MARKER, by: 'none' });
  rig.loseAfter = direct(steps).heard.length - 1;
  for (const step of steps) rig.say(step);
  expect(rig.losses).toBe(1);
  expect(printed(rig.heard())).toContain('OUTLIVE_OUTCOME_UNKNOWN');
  expect(rig.database.applied).toEqual(['insert a']);
});
