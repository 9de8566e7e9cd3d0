import { describe, expect, it } from 'vitest';
import { useFront } from '../kit/front.js';

/** Tables that a transaction has made itself get other oids when it is repeated; a client's answers name those oids. */
const front = useFront({}, '');

describe('a transaction goes on with', () => {
  it.each([
    ['a table that it has made', 'create table own (id int generated always as identity, v text)'],
    ['a temporary table', 'create temporary table own (id int generated always as identity, v text) on commit drop'],
    ['a table made from a query', "create temporary table own on commit drop as select 0 as id, 'none' as v"],
  ])('%s', async (_, create) => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('begin');
    await client.query(create);
    await client.query('insert into own (v) values ($1), ($2)', ['a', 'b']);
    const before = await client.query('select * from own order by v');
    expect(before.fields[0].tableID).toBeGreaterThan(0);
    expect((await client.query("select v from own where v = 'a'")).rows).toEqual([{ v: 'a' }]);
    await front.failover();
    expect((await client.query('select * from own order by v')).rows).toEqual(before.rows);
    await client.query('commit');
    await client.query('drop table if exists own');
    expect(client.errors).toEqual([]);
  });
});
