import { beforeAll, beforeEach, expect, it } from 'vitest';
import { refusal, TdsClient, TYPES } from '../kit/tds.js';
import { useTdsStage } from '../kit/tds-stage.js';

const stage = useTdsStage();

beforeAll(async () => {
  const client = await TdsClient.connect(stage.primary.port);
  await client.batch('CREATE TABLE kept (id int PRIMARY KEY)');
  await client.batch('INSERT INTO kept VALUES (1), (2), (3), (4), (5), (6)');
  await client.close();
});

const int = (name: string, value: number | null, output = false) => ({ name, type: TYPES.Int, value, output });
const text = (name: string, value: string) => ({ name, type: TYPES.NVarChar, value });
const SELECT = 'SELECT id FROM kept WHERE id > @from ORDER BY id';
const OPTIONS = [int('scrollopt', 8, true), int('ccopt', 1, true), int('rowcount', 0, true)];

/** What drivers do with cursors, each with a handle. */
class Cursors {
  constructor(readonly client: TdsClient) {}

  async open(from: number): Promise<number> {
    const parameters = [text('params', '@from int'), int('from', from)];
    const { outputs } = await this.client.procedure(
      'sp_cursoropen',
      int('cursor', null, true),
      text('stmt', SELECT),
      ...OPTIONS,
      ...parameters,
    );
    return outputs.cursor as number;
  }

  async prepare(): Promise<number> {
    const given = [text('params', '@from int'), text('stmt', SELECT), int('options', 1)];
    const { outputs } = await this.client.procedure('sp_cursorprepare', int('handle', null, true), ...given);
    return outputs.handle as number;
  }

  async execute(handle: number, from: number): Promise<number> {
    const { outputs } = await this.client.procedure(
      'sp_cursorexecute',
      int('handle', handle),
      int('cursor', null, true),
      ...OPTIONS,
      int('from', from),
    );
    return outputs.cursor as number;
  }

  async prepexec(from: number): Promise<{ handle: number; cursor: number }> {
    const { outputs } = await this.client.procedure(
      'sp_cursorprepexec',
      int('handle', null, true),
      int('cursor', null, true),
      text('params', '@from int'),
      text('stmt', SELECT),
      int('options', 1),
      ...OPTIONS,
      int('from', from),
    );
    return outputs as { handle: number; cursor: number };
  }

  async fetch(cursor: number): Promise<unknown[]> {
    const next = [int('cursor', cursor), int('fetchtype', 2), int('rownum', 0), int('nrows', 2)];
    return (await this.client.procedure('sp_cursorfetch', ...next)).rows.map(({ id }) => id);
  }

  async close(cursor: number): Promise<void> {
    await this.client.procedure('sp_cursorclose', int('cursor', cursor));
  }

  async unprepare(handle: number): Promise<void> {
    await this.client.procedure('sp_cursorunprepare', int('handle', handle));
  }
}

let cursors: Cursors;
beforeEach(async () => {
  cursors = new Cursors(await stage.connect());
  // The next server counts from the beginning, so its handles are other ones.
  for (let i = 0; i < 3; i++) await cursors.unprepare(await cursors.prepare());
});

it('goes on with cursors of the open transaction, at their places', async () => {
  const { client } = cursors;
  await client.begin();
  const [one, two] = [await cursors.open(0), await cursors.open(3)];
  expect([await cursors.fetch(one), await cursors.fetch(two)]).toEqual([
    [1, 2],
    [4, 5],
  ]);
  await stage.kill();
  expect([await cursors.fetch(two), await cursors.fetch(one), await cursors.fetch(one)]).toEqual([[6], [3, 4], [5, 6]]);
  await cursors.close(one);
  expect(await refusal(cursors.fetch(one))).toMatchObject({ number: 16909 });
  await client.commit();
  await cursors.close(two);
  expect(client.lost).toEqual([]);
});

it('opens cursors again over statements that were prepared for them, before and in the transaction', async () => {
  const { client } = cursors;
  const early = await cursors.prepare();
  await client.begin();
  const { handle, cursor } = await cursors.prepexec(4);
  const other = await cursors.execute(early, 1);
  expect([await cursors.fetch(cursor), await cursors.fetch(other)]).toEqual([
    [5, 6],
    [2, 3],
  ]);
  await stage.kill();
  expect([await cursors.fetch(cursor), await cursors.fetch(other)]).toEqual([[], [4, 5]]);
  const third = await cursors.execute(handle, 2);
  expect(await cursors.fetch(third)).toEqual([3, 4]);
  for (const one of [cursor, other, third]) await cursors.close(one);
  await client.commit();
  expect(await cursors.fetch(await cursors.execute(early, 5))).toEqual([6]);
  await cursors.unprepare(handle);
  expect(await refusal(cursors.execute(handle, 0))).toMatchObject({ number: 8179 });
});

it('opens a cursor outside of a transaction when its server dies first', async () => {
  const handle = await cursors.prepare();
  await stage.kill();
  expect(await cursors.fetch(await cursors.execute(handle, 4))).toEqual([5, 6]);
});

it.each([false, true])('names a cursor that was opened before, in a transaction then: %s', async (inTransaction) => {
  const { client } = cursors;
  const cursor = await cursors.open(0);
  if (inTransaction) {
    await client.begin();
    await client.sql('SELECT 1 AS one');
  }
  await stage.kill();
  expect(await refusal(client.sql('SELECT 1 AS one'))).toMatchObject({
    number: 50055,
    message: expect.stringContaining(`cursor ${cursor}`),
  });
  expect(client.descriptor).toBe('0000000000000000');
  expect(await refusal(cursors.fetch(cursor))).toMatchObject({ number: 16909 });
  expect(await cursors.fetch(await cursors.open(4))).toEqual([5, 6]);
});

it('knows nothing of cursors that were closed, or that a reset took away', async () => {
  const { client } = cursors;
  await cursors.close(await cursors.open(0));
  await cursors.open(1);
  await client.reset();
  await stage.kill();
  expect((await client.sql('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
});
