import { describe, expect, it } from 'vitest';
import { ATTENTION, packets, RESETCONNECTION, SQL_BATCH } from '../../codecs/tds/packet.js';
import { writeSqlBatch } from '../../codecs/tds/request.js';
import { markOf } from '../../core/session/proof.js';
import { BY_MARKER } from '../kit/engine.js';
import { BYTES, CLIENT_SIZE, TdsEngine, WHOLE } from '../kit/tds-engine.js';
import { run, TdsScriptClient, words } from '../kit/tds-scripts.js';

/**
 * Commits proved by rows, without sockets: wherever the server is lost, every statement takes effect once and the client hears what a server
 * itself would have said.
 */
const SCRIPTS: Readonly<Record<string, readonly string[]>> = {
  'a transaction': ['tm begin', 'insert a', 'select 2', 'tm commit', 'select 1'],
  'a transaction in text': ['begin tran', 'insert a', 'begin tran', 'commit', 'select 1', 'commit', 'select 1'],
  'a transaction begun by a statement': [
    'SET IMPLICIT_TRANSACTIONS ON',
    'insert a',
    'select 1',
    'IF @@TRANCOUNT > 0 COMMIT TRANSACTION',
    'insert b',
    'commit',
  ],
  // Behind an error nobody knows how deep it is.
  'nested transactions': ['tm begin', 'insert a', 'select fail', 'tm begin', 'tm commit', 'insert b', 'tm commit'],
  'nested transactions in text': [
    'begin tran',
    'insert a',
    'insert fail',
    'begin tran',
    'commit',
    'insert b',
    'commit',
  ],
  'statements that commit by themselves': ['insert a', 'select 1', 'prepare insert b', 'execute', 'insert c'],
  'several in a batch': ['insert a; select 1; insert b', 'insert c; insert fail; insert d; select fail', 'insert fail'],
};

const make = (options: ConstructorParameters<typeof TdsEngine>[0] = {}) =>
  new TdsEngine({ ...options, proof: BY_MARKER });
/** Rows, one for each commit of something. */
const COMMITS: Readonly<Record<string, number>> = {
  'a transaction': 1,
  'a transaction in text': 1,
  'a transaction begun by a statement': 2,
  'nested transactions': 1,
  'nested transactions in text': 1,
  'statements that commit by themselves': 3,
  // Of the third nothing stands, and a row tells of that.
  'several in a batch': 3,
};

describe.each([true, false])('with a server that tells of transactions in text: %s', (announces) => {
  describe.each(Object.entries(SCRIPTS))('%s', (name, script) => {
    const plain = new TdsEngine({ announces });
    const wanted = run(script, plain);
    const { applied } = plain.database;

    it('comes out the same, with a row for each commit', () => {
      for (const cut of [WHOLE, BYTES]) {
        const engine = make({ announces, cut });
        expect(run(script, engine, cut)).toEqual(wanted);
        expect(engine.database.applied).toEqual(applied);
        expect(engine.database.marks.size).toBe(COMMITS[name]);
        expect(engine.database.lookups).toBe(0);
      }
    });

    it.each(['loseAt', 'loseBefore'] as const)('goes on when the server is lost at every byte: %s', (what) => {
      let lookups = 0;
      for (let at = 0; ; at++) {
        const engine = make({ announces, sizes: [CLIENT_SIZE, 1000] });
        engine[what] = at;
        expect(run(script, engine), `${what} ${at}`).toEqual(wanted);
        expect(engine.database.applied, `${what} ${at}`).toEqual(applied);
        expect(engine.database.marks.size, `${what} ${at}`).toBe(COMMITS[name]);
        lookups += engine.database.lookups;
        if (engine.losses === 0) break;
      }
      expect(lookups).toBeGreaterThan(0);
    });

    it('goes on elsewhere between any two steps, and there with another server', () => {
      for (let at = 0; at <= script.length; at++) {
        const engine = make({ announces });
        const client = new TdsScriptClient(engine);
        for (const [i, text] of script.entries()) {
          if (i === at) {
            expect(engine.move()).toBe(true);
            engine.lose();
          }
          client.step(text);
        }
        expect(words(engine.messages())).toEqual(wanted);
        expect(engine.database.applied).toEqual(applied);
      }
    });
  });

  it('is asked again when the server that was asked is lost too, with the same row', () => {
    const script = ['tm begin', 'insert a', 'tm commit', 'insert b'];
    const plain = new TdsEngine({ announces });
    const wanted = run(script, plain);
    let twice = 0;
    for (let at = 0; at < 300; at += 3) {
      for (let again = 1; again < 700; again += 29) {
        const engine = make({ announces });
        const client = new TdsScriptClient(engine);
        client.step('tm begin');
        client.step('insert a');
        const from = engine.sent;
        engine.loseBefore = from + at;
        // Counted from where the first one is lost.
        engine.loseAt = engine.delivered + again;
        client.step('tm commit');
        client.step('insert b');
        expect(words(engine.messages())).toEqual(wanted);
        expect(engine.database.applied).toEqual(['a', 'b']);
        expect(engine.database.marks.size).toBe(2);
        if (engine.losses === 2) twice++;
      }
    }
    expect(twice).toBeGreaterThan(100);
  });

  describe('a row that is refused', () => {
    it.each([
      ['of a transaction', ['tm begin', 'insert a', 'tm commit']],
      ['of one in text', ['begin tran', 'insert a', 'commit']],
      ['of a statement', ['insert a']],
    ])('%s takes all with it, of which the client is told', (_, script) => {
      for (const [fault, told] of [
        [2812, 50_055],
        [-2812, 50_055],
        [1222, 1222],
        [-1205, 1205],
      ]) {
        const engine = make({ announces });
        const client = new TdsScriptClient(engine);
        engine.database.markFault = fault;
        const heard = script.map((text) => client.step(text)).at(-1)!;
        expect(heard.length).toBe(1);
        expect(errorsIn(heard[0])).toEqual([told]);
        expect(client.descriptor).toBe(0n);
        expect(engine.database.applied).toEqual([]);
        engine.database.markFault = 0;
        client.step('tm begin');
        client.step('insert b');
        client.step('tm commit');
        client.step('insert c');
        expect(engine.database.applied).toEqual(['b', 'c']);
      }
    });

    it('is told of a commit that was on a way that nobody told of', () => {
      for (const script of [['tm begin', 'insert a', 'tm commit'], ['insert a']]) {
        const wanted = run(script, new TdsEngine({ announces }));
        const engine = make({ announces });
        engine.database.marks.add(markOf(BY_MARKER, 1).id);
        expect(run(script, engine)).toEqual(wanted);
        expect(engine.database.applied).toEqual([]);
        expect(new TdsScriptClient(engine).step('insert b').length).toBe(1);
        expect(engine.database.applied).toEqual(['b']);
      }
    });
  });

  it('leaves no row where nothing is written, or nothing commits', () => {
    const engine = make({ announces });
    const none = ['tm begin', 'select 1', 'tm commit', 'begin tran', 'insert a', 'rollback', 'select 1', 'print'];
    run(none, engine);
    expect(engine.database.marks.size).toBe(0);
    expect(engine.server.heard.filter((text) => text.startsWith('mark'))).toEqual([]);
  });

  it('is asked for in vain by a client that cancels', () => {
    const attention = packets(ATTENTION, new Uint8Array(0), CLIENT_SIZE);
    for (const [script, done] of [
      [['tm begin', 'insert a', 'tm commit'], 'tm commit'],
      [['insert a'], 'insert a'],
    ] as const) {
      const seen = new Set<string>();
      for (let at = 0; at < 400; at++) {
        const engine = make({ announces, cut: BYTES });
        const client = new TdsScriptClient(engine);
        for (const text of script.slice(0, -1)) client.step(text);
        const before = engine.messages().length;
        engine.interrupt = { at: engine.delivered + at, bytes: attention };
        client.step(done);
        engine.interrupt = null;
        const heard = engine.messages().slice(before);
        // It is acknowledged once, and last, if it came before the answer was over.
        const acknowledged = heard.map((message) => message.toString('hex').startsWith('fd2000'));
        expect(acknowledged.filter(Boolean).length, `at ${at}`).toBeLessThanOrEqual(1);
        expect(acknowledged.indexOf(true), `at ${at}`).toBe(acknowledged.includes(true) ? heard.length - 1 : -1);
        seen.add(`${heard.length} ${engine.database.applied}`);
        if (client.descriptor !== 0n) client.step('tm commit');
        expect(engine.database.applied, `at ${at}`).toEqual(['a']);
        expect(client.step('select 1').length).toBe(1);
      }
      expect(seen.size).toBeGreaterThan(1);
    }
  });
});

it('is refused although its client has taken the commit back', () => {
  const attention = packets(ATTENTION, new Uint8Array(0), CLIENT_SIZE);
  const told = { withCommit: 0, later: 0 };
  for (const fault of [2812, -1205]) {
    for (let at = 0; at < 150; at++) {
      const engine = make({ cut: BYTES });
      const client = new TdsScriptClient(engine);
      for (const text of ['tm begin', 'insert a']) client.step(text);
      engine.database.markFault = fault;
      engine.interrupt = { at: engine.delivered + at, bytes: attention };
      const heard = client.step('tm commit').flatMap(errorsIn);
      engine.interrupt = null;
      if (heard.length > 0) told.withCommit++;
      else {
        // It hears of it at once when it speaks again, and then of nothing more.
        told.later++;
        expect(client.step('select 1').flatMap(errorsIn)).toEqual([50_055]);
      }
      expect(client.descriptor).toBe(0n);
      engine.database.markFault = 0;
      for (const text of ['tm begin', 'insert b', 'tm commit']) expect(client.step(text).flatMap(errorsIn)).toEqual([]);
      expect(engine.database.applied).toEqual(['b']);
    }
  }
  expect(Math.min(told.withCommit, told.later)).toBeGreaterThan(0);
});

it('is unknown for what cannot be guarded', () => {
  const alone: Readonly<Record<string, string>> = {
    'asks for the transaction': 'insert a; SELECT @@TRANCOUNT',
    'catches errors': 'BEGIN TRY insert a END TRY BEGIN CATCH END CATCH',
    'may commit': 'exec p',
    'sets something': 'insert a; SET LOCK_TIMEOUT 5',
  };
  for (const [why, text] of Object.entries(alone)) {
    const engine = make();
    const client = new TdsScriptClient(engine);
    engine.loseAt = 1;
    expect(errorsIn(client.step(text)[0]), why).toEqual([50_087]);
    expect(engine.database.marks.size).toBe(0);
  }
});

it('is left around a request that resets its session', () => {
  for (const what of ['loseAt', 'loseBefore'] as const) {
    for (let at = 0; ; at++) {
      const engine = make();
      const client = new TdsScriptClient(engine);
      engine[what] = at;
      const [answer] = client.say(SQL_BATCH, writeSqlBatch(0n, 'insert a'), WHOLE, RESETCONNECTION);
      expect(answer.toString('hex', 0, 1), `${what} ${at}`).toBe('fd');
      expect(engine.database.applied, `${what} ${at}`).toEqual(['a']);
      expect(engine.database.marks.size).toBe(1);
      if (engine.losses === 0) break;
    }
  }
});

it('leaves statements alone that commit by themselves where their outcome may stay unknown', () => {
  const engine = new TdsEngine({ proof: { ...BY_MARKER, autocommit: 'unknown' } });
  const client = new TdsScriptClient(engine);
  engine.loseAt = 1;
  expect(errorsIn(client.step('insert a')[0])).toEqual([50_087]);
  expect(engine.database.applied).toEqual(['a']);
  for (const text of ['tm begin', 'insert b', 'tm commit']) client.step(text);
  expect(engine.database.marks.size).toBe(1);
});

/** Numbers of the ERROR tokens in a message; nothing else here begins with that byte. */
function errorsIn(message: Buffer): number[] {
  return [...message.entries()].flatMap(([at, byte]) =>
    byte === 0xaa && message.readUInt16LE(at + 1) < message.length ? [message.readInt32LE(at + 3)] : [],
  );
}
