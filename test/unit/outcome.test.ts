import { describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { CodedError, type Exchange, type Want } from '../../core/contract/index.js';
import { normalizeConfig } from '../../core/host/config/index.js';
import { MarkSweeper, outcomeOf, proofOf } from '../../core/host/outcome.js';
import { message } from '../kit/gateway.js';
import { silent } from '../kit/told.js';

const listenerWith = (outcome: object) =>
  normalizeConfig({
    listeners: [{ name: 'main', codec: 'postgres', listen: '127.0.0.1:0', cluster: 'c', auth: 'trust', outcome }],
    clusters: [{ name: 'c', servers: [{ name: 'a', host: 'a', port: 1 }], monitor: { user: 'm' } }],
  }).listeners[0];
const MARKER = listenerWith({ by: 'marker' });

describe('how commits are proved', () => {
  it('is what the listener says, else the best that the codec can', () => {
    const unable = { ...postgres, capabilities: { ...postgres.capabilities, outcome: false } };
    expect(outcomeOf(listenerWith({}), postgres)).toEqual({ by: 'position', table: '' });
    expect(outcomeOf(listenerWith({}), unable)).toEqual({ by: 'none', table: '' });
    expect(outcomeOf(MARKER, unable)).toEqual({ by: 'marker', table: 'outlive.commit_marker' });
    expect(outcomeOf(listenerWith({ by: 'marker', table: 'a.b' }), postgres)).toEqual({ by: 'marker', table: 'a.b' });
  });

  it('has a secret of each session where rows prove them, and none elsewhere', () => {
    const [one, other] = [1, 2].map(() => proofOf(MARKER, postgres, 'd'));
    expect(one).toMatchObject({ by: 'marker', autocommit: 'guard', table: 'outlive.commit_marker', database: 'd' });
    expect(one.seed).toHaveLength(16);
    expect(one.seed).not.toEqual(other.seed);
    expect(proofOf(listenerWith({}), postgres, 'd').seed).toHaveLength(0);
  });
});

it('old rows are removed wherever sessions left any, and what fails in one database is tried again', async () => {
  const asked: string[] = [];
  const warned: unknown[] = [];
  const cluster = {
    askIn: async <R>(database: string, exchange: Exchange<R>): Promise<R> => {
      const want = exchange.next().value as Extract<Want, { want: 'frame' }>;
      asked.push(
        `${database} ${Buffer.from(want.send!).toString('latin1').includes("interval '3600000 milliseconds'")}`,
      );
      if (database === 'gone') throw new CodedError('OUTLIVE_NO_WRITABLE_SERVER', 'server', 'none');
      return 3 as R;
    },
  };
  const log = { ...silent, warn: (fields: Record<string, unknown>) => warned.push(fields.database) };
  const sweeper = new MarkSweeper(MARKER, postgres, cluster, log);
  for (const database of ['gone', 'd', 'd']) sweeper.note(database);
  await sweeper.sweep();
  await sweeper.sweep();
  expect(asked).toEqual(['gone true', 'd true', 'gone true', 'd true']);
  expect(warned).toEqual(['gone', 'gone']);
});

describe('a row of PostgreSQL', () => {
  const MARK = { id: '00'.repeat(16), table: 'a.b', database: 'd' };
  const column = (text: string) => Buffer.concat([Buffer.from([0, 0, 0, text.length]), Buffer.from(text)]);
  const row = (...columns: string[]) =>
    message('D', Buffer.from([0, columns.length]), ...columns.map((text) => column(text)));
  const error = (code: string) => message('E', `SERROR\0VERROR\0C${code}\0Mno\0\0`);
  const READY = message('Z', 'I');

  function answered(...frames: Buffer[]): unknown {
    const exchange = postgres.markers!.find(MARK, { system: '7' } as never);
    let step = exchange.next();
    for (const frame of [...frames, READY]) {
      if (step.done) break;
      step = exchange.next(frame);
    }
    return step.value;
  }

  it('proves something only on a server that takes writes, in the history of the commit', () => {
    expect(answered(row('f', '7', 't'))).toBe('present');
    expect(answered(row('f', '7', 'f'))).toBe('absent');
    expect(answered(row('t', '7', 't'))).toBe('unknown');
    expect(answered(row('f', '8', 'f'))).toBe('unknown');
  });

  it('proves nothing where it may not be read, and is asked for again where the question failed', () => {
    for (const code of ['42P01', '42501', '3F000']) expect(answered(error(code)), code).toBe('unknown');
    expect(() => answered(error('53200'))).toThrow('53200');
  });
});
