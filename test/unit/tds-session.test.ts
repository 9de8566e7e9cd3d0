import { describe, expect, it } from 'vitest';
import { frame } from '../../codecs/tds/frames.js';
import { BatchInjection } from '../../codecs/tds/inject.js';
import { ATTENTION, packets, RESETCONNECTION, SQL_BATCH } from '../../codecs/tds/packet.js';
import { writeSqlBatch } from '../../codecs/tds/request.js';
import { ROW } from '../../codecs/tds/tokens.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { BY_MARKER } from '../kit/engine.js';
import { BYTES, CLIENT_SIZE, LIMITS, TdsEngine, WHOLE } from '../kit/tds-engine.js';
import { TdsScriptClient as Client, run, SCRIPTS, words } from '../kit/tds-scripts.js';

describe.each([true, false])('with a server that tells of transactions in text: %s', (announces) => {
  describe.each(Object.entries(SCRIPTS))('%s', (_, script) => {
    const wanted = run(script, new TdsEngine({ announces }));

    it('come out the same in whatever pieces they come and go', () => {
      expect(wanted.length).toBe(script.length);
      for (const cut of [WHOLE, BYTES, (left: number) => Math.min(left, 37)]) {
        for (const say of [WHOLE, BYTES]) expect(run(script, new TdsEngine({ announces, cut }), say)).toEqual(wanted);
      }
    });

    it('come out the same between connections with other packet sizes', () => {
      for (const sizes of [[512], [8000], [777, 32_767]]) {
        expect(run(script, new TdsEngine({ announces, sizes }))).toEqual(wanted);
      }
    });

    it('go on behind every byte of a server', () => {
      const whole = new TdsEngine({ announces });
      run(script, whole);
      const step = whole.delivered > 10_000 ? 311 : 1;
      for (let at = 0; at < whole.delivered; at += step) {
        const engine = new TdsEngine({ announces, sizes: [CLIENT_SIZE, 1000] });
        engine.loseAt = at;
        expect(run(script, engine), `lost behind ${at} bytes`).toEqual(wanted);
        expect(engine.database.applied).toEqual([]);
      }
    });

    it('go on elsewhere between any two steps, and there with another server', () => {
      for (let at = 0; at <= script.length; at++) {
        for (const lose of [false, true]) {
          const engine = new TdsEngine({ announces });
          const client = new Client(engine);
          for (const [i, text] of script.entries()) {
            if (i === at) {
              expect(engine.move()).toBe(true);
              if (lose) engine.lose();
            }
            client.step(text);
          }
          expect(words(engine.messages())).toEqual(wanted);
        }
      }
    });
  });
});

describe('what cannot be hidden', () => {
  const errorIn = (messages: readonly Buffer[]): number => {
    const [message] = messages;
    return message.readInt32LE(message.indexOf(0xaa) + 3);
  };

  it('is a commit whose answer was lost', () => {
    const engine = new TdsEngine();
    const client = new Client(engine);
    for (const text of ['tm begin', 'insert a']) client.step(text);
    engine.loseAt = engine.delivered + 1;
    expect(errorIn(client.step('tm commit'))).toBe(50_087);
    expect(client.descriptor).toBe(0n);
    expect(engine.database.applied).toEqual(['a']);
    expect(client.step('select 1').length).toBe(1);
  });

  it('is a statement outside of a transaction whose answer was lost', () => {
    const engine = new TdsEngine();
    const client = new Client(engine);
    engine.loseAt = 1;
    expect(errorIn(client.step('insert a'))).toBe(50_087);
    expect(engine.database.applied).toEqual(['a']);
  });

  it('is a temporary table', () => {
    const engine = new TdsEngine();
    const client = new Client(engine);
    client.step('CREATE TABLE #t (a int)');
    engine.lose();
    engine.settle();
    expect(errorIn(client.step('select 1'))).toBe(50_055);
    client.step('select 1');
    engine.lose();
    engine.settle();
    expect(client.step('select 1')[0].includes(0xaa)).toBe(false);
  });
});

it('does not collect a request beyond its limit', () => {
  const engine = new TdsEngine();
  const size = 32_000;
  const whole = packets(SQL_BATCH, writeSqlBatch(0n, 'p'.repeat(LIMITS.request)), size);
  let at = 0;
  const all = () => {
    for (; at < whole.length; at += size) engine.session.frontend(whole.subarray(at, at + size));
  };
  expect(all).toThrow(expect.objectContaining({ code: 'OUTLIVE_REQUEST_TOO_LARGE' }));
  expect(at).toBeLessThan(LIMITS.request + 2 * size);
});

describe('an Attention', () => {
  it('ends the request that runs, on this server or on the next', () => {
    const engine = new TdsEngine();
    const client = new Client(engine);
    client.step('tm begin');
    client.step('insert a');
    expect(client.step('waitfor')).toEqual([]);
    engine.lose();
    engine.settle();
    expect(engine.server.heard).toEqual(['insert a', 'waitfor']);
    const heard = client.say(ATTENTION, new Uint8Array(0));
    expect(heard.map((message) => message.toString('hex').slice(0, 6))).toEqual(['fd2000']);
    expect(client.step('waitfor')).toEqual([]);
    client.say(ATTENTION, new Uint8Array(0));
    client.step('tm commit');
    expect(engine.database.applied).toEqual(['a']);
  });

  it('is sent again with its request', () => {
    const engine = new TdsEngine();
    const client = new Client(engine);
    expect(client.step('waitfor')).toEqual([]);
    engine.session.frontend(packets(ATTENTION, new Uint8Array(0), CLIENT_SIZE));
    engine.lose();
    engine.settle();
    expect(engine.messages().map((message) => message.toString('hex').slice(0, 6))).toEqual(['fd2000']);
    expect(client.step('select 1').length).toBe(1);
  });

  describe('while there is no server', () => {
    /** What the client hears of a step, or of an Attention, before there is another server. */
    const meanwhile = (engine: TdsEngine, bytes: Uint8Array = packets(ATTENTION, new Uint8Array(0), CLIENT_SIZE)) => {
      const before = engine.messages().length;
      engine.session.frontend(bytes);
      return engine
        .messages()
        .slice(before)
        .map((message) => message.toString('hex').slice(0, 6));
    };
    const CANCELLED = ['fd0200', 'fd2000'];

    it.each([
      ['in a transaction', true],
      ['outside of one', false],
    ])('is answered at once, and its request is forgotten: %s', (_, inside) => {
      const engine = new TdsEngine({ proof: BY_MARKER });
      const client = new Client(engine);
      if (inside) client.step('tm begin');
      client.step('insert a');
      // In flight when its server is lost, ...
      engine.session.frontend(client.message('insert x'));
      engine.lose();
      expect(meanwhile(engine)).toEqual(CANCELLED);
      // ... and asked for afterwards.
      expect(meanwhile(engine, client.message('insert b'))).toEqual([]);
      expect(meanwhile(engine)).toEqual(CANCELLED);
      engine.settle();
      client.step('insert c');
      if (inside) client.step('tm commit');
      expect(engine.database.applied).toEqual(['a', 'c']);
      expect(client.step('select 1').length).toBe(1);
    });

    it('waits behind a commit in doubt', () => {
      const engine = new TdsEngine();
      const client = new Client(engine);
      for (const step of ['tm begin', 'insert a']) client.step(step);
      engine.session.frontend(client.message('tm commit'));
      engine.lose();
      expect(meanwhile(engine)).toEqual([]);
    });
  });

  it('that comes when all is answered is answered here', () => {
    const client = new Client(new TdsEngine());
    client.step('select 1');
    expect(client.say(ATTENTION, new Uint8Array(0)).length).toBe(1);
    expect(client.step('select 1').length).toBe(1);
  });
});

it('makes again what was set, in its order, and nothing that was reset', () => {
  const engine = new TdsEngine();
  const client = new Client(engine);
  for (const text of ['SET LOCK_TIMEOUT 5', 'SET TEXTSIZE 7', 'USE other', 'SET LOCK_TIMEOUT 6']) client.step(text);
  engine.lose();
  engine.settle();
  expect(engine.server.heard).toEqual(['USE [other]\nSET TEXTSIZE 7\nSET LOCK_TIMEOUT 6']);
  client.say(SQL_BATCH, writeSqlBatch(0n, 'select 1'), WHOLE, RESETCONNECTION);
  engine.lose();
  engine.settle();
  expect(engine.server.heard).toEqual([]);
});

it('prepares again what is in use, under the handles that the client knows', () => {
  const engine = new TdsEngine();
  const client = new Client(engine);
  client.step('prepare');
  const { handle } = client;
  engine.lose();
  engine.settle();
  expect(engine.server.heard).toEqual(['prepare select 2']);
  expect(client.step('execute')[0].includes(0xaa)).toBe(false);
  expect(client.handle).toBe(handle);
});

it('takes no endless answer to a question of its own', () => {
  const question = new BatchInjection('SELECT @@TRANCOUNT', TDS_7_4);
  const row = frame(ROW, new Uint8Array(1000), 0);
  const answer = () => {
    for (let i = 0; i < 100; i++) question.frame(row, 0, row.length);
  };
  expect(answer).toThrow(ProtocolViolation);
});

it('is told nothing past its session while packets of an answer are not full', () => {
  const engine = new TdsEngine();
  const client = new Client(engine);
  expect(engine.session.between).toBe(true);
  // The first row is there, and more is to come.
  engine.session.frontend(client.message('select 2'));
  const bytes = (engine as unknown as { fromServer: Buffer }).fromServer;
  engine.session.backend(bytes.subarray(0, 60));
  expect(engine.session).toMatchObject({ amidFrame: false, between: false });
  engine.session.backend(bytes.subarray(60));
  expect(engine.session.between).toBe(true);
});
