import { describe, expect, it } from 'vitest';
import { frame } from '../../codecs/tds/frames.js';
import { BatchInjection } from '../../codecs/tds/inject.js';
import { ATTENTION, packets, RESETCONNECTION, SQL_BATCH } from '../../codecs/tds/packet.js';
import { writeSqlBatch } from '../../codecs/tds/request.js';
import { ROW } from '../../codecs/tds/tokens.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { BYTES, CLIENT_SIZE, TdsEngine, WHOLE } from '../kit/tds-engine.js';
import { TdsScriptClient as Client, run, words } from '../kit/tds-script.js';

const SCRIPTS: Readonly<Record<string, readonly string[]>> = {
  reads: ['select 3', 'print', 'select fail', 'select 0', 'select long', 'select 1'],
  'a transaction': [
    'tm begin',
    'insert a',
    'select 2',
    'select fail',
    'print',
    'insert b',
    'select 1',
    'tm rollback',
    'select 1',
  ],
  'a transaction in text': [
    'begin tran',
    'insert a',
    'begin tran',
    'select 2',
    'commit',
    'select 1',
    'rollback',
    'select 1',
  ],
  'a long answer in a transaction': ['tm begin', 'insert a', 'select long', 'select 1', 'tm rollback'],
  'prepared statements': ['prepare', 'execute', 'tm begin', 'execute', 'prepare', 'execute', 'tm rollback', 'execute'],
  settings: ['SET LOCK_TIMEOUT 5', 'USE other', 'select 1', 'tm begin', 'SET TEXTSIZE 7', 'tm rollback', 'select 2'],
};

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
          expect(words(engine)).toEqual(wanted);
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
  expect(engine.server.heard).toEqual(['USE [other]', 'SET TEXTSIZE 7', 'SET LOCK_TIMEOUT 6']);
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
