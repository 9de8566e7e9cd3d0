import { beforeAll, describe, expect, it } from 'vitest';
import tds from '../../codecs/tds/index.js';
import { TdsClient } from '../kit/tds.js';
import { useTdsStage } from '../kit/tds-stage.js';

/** Commits whose answer was lost, proved by rows. */
const TABLE = tds.markers!.defaultTable;
const MARKER = { listener: { outcome: { by: 'marker' } } } as const;

describe.each([
  ['tells of transactions in text', true],
  ['does not tell of transactions in text', false],
])('a server that %s', (_, textTransactions) => {
  const stage = useTdsStage({ textTransactions }, MARKER);

  beforeAll(async () => {
    const client = await TdsClient.connect(stage.primary.port);
    await client.batch('CREATE TABLE t (id int, v nvarchar(20))');
    for (const statement of tds.markers!.setup(TABLE, 'sa')) await client.batch(statement);
    await client.close();
  });

  const rows = async (id: number) =>
    (await (await stage.direct()).sql(`SELECT v FROM t WHERE id = ${id}`)).rows.map(({ v }) => v);

  it('commits', async () => {
    const client = await stage.connect();
    await client.begin();
    await client.sql("INSERT INTO t VALUES (1, 'x')");
    const gate = stage.primary.hold('after-commit');
    const committed = client.commit();
    await gate.reached;
    await stage.kill();
    gate.release();
    await committed;
    expect(client.descriptor).toBe('0000000000000000');
    expect(await rows(1)).toEqual(['x']);
    expect(Object.fromEntries(stage.gateway.gateway.stats.outcomes)).toEqual({ committed: 1 });
  });
});
