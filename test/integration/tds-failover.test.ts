import { expect, it } from 'vitest';
import { useTdsStage } from '../kit/tds-stage.js';

const stage = useTdsStage();

it('answers through the gateway as the server does', async () => {
  const through = await stage.connect();
  const direct = await stage.direct();
  for (const sql of [
    'SELECT 1 AS one',
    "SELECT 'a' AS a, NULL AS b, CAST(2.5 AS decimal(5,2)) AS c",
    'SELECT 1 FROM nothing',
  ]) {
    const [a, b] = await Promise.all(
      [through, direct].map((client) => client.batch(sql).catch((error) => error.message)),
    );
    expect(a).toEqual(b);
  }
});

it('goes on with an open transaction on the other server', async () => {
  const client = await stage.connect();
  await client.batch('DROP TABLE IF EXISTS kept; CREATE TABLE kept (id int PRIMARY KEY, name nvarchar(20))');
  await client.begin();
  await client.sql("INSERT INTO kept VALUES (1, 'one')");
  const before = (await client.sql('SELECT * FROM kept')).rows;
  const { descriptor } = client;
  await stage.kill();
  await client.sql("INSERT INTO kept VALUES (2, 'two')");
  expect(client.descriptor).toBe(descriptor);
  expect((await client.sql('SELECT * FROM kept ORDER BY id')).rows).toEqual([...before, { id: 2, name: 'two' }]);
  await client.commit();
  expect(client.lost).toEqual([]);
  const direct = await stage.direct();
  expect((await direct.sql('SELECT id FROM kept ORDER BY id')).rows).toEqual([{ id: 1 }, { id: 2 }]);
});
