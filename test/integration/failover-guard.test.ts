import { serialize } from 'pg-protocol';
import { expect, it } from 'vitest';
import { show, useStage } from '../kit/stage.js';

const stage = useStage('create table t (id int primary key, v text)');

it('pipelined', async () => {
  const c = await stage.raw();
  c.send(serialize.query("insert into t values (1,'a')"), serialize.query("insert into t values (2,'a')"), serialize.query('select 1'));
  console.log((await c.ready(3, 3000)).map(show));
});
