import { serialize } from 'pg-protocol';
import { expect, it } from 'vitest';
import { eventually } from '../kit/servers.js';
import { type Raw, show, useStage } from '../kit/stage.js';

/** F1: what a session has set is there after its server was killed. */
const stage = useStage(`
  create schema s;
  create table s.only_here (id int);
  insert into s.only_here values (7);
  create table t (id int, v text);
  create role weak;
  grant usage on schema s to weak;
  grant all on all tables in schema s to weak;
`);

const query = async (client: Raw, sql: string): Promise<string[]> => {
  client.send(serialize.query(sql));
  return (await client.ready()).map(show);
};
const value = async (client: Raw, sql: string): Promise<string> =>
  (await query(client, sql)).filter((f) => f[0] === 'D')[0];

it('keeps settings, prepared statements, LISTEN and role of an idle session', async () => {
  const client = await stage.pg();
  const told: string[] = [];
  client.on('notification', ({ channel, payload }) => told.push(`${channel} ${payload}`));
  await client.query("set datestyle = 'German'");
  await client.query("set timezone to 'Asia/Tokyo'");
  await client.query('set search_path = s, public');
  await client.query("select set_config('work_mem', '7MB', false), set_config('app.user', 'it''s me', false)");
  await client.query('select set_config($1, $2, false)', ['statement_timeout', '70s']);
  await client.query('listen news');
  await client.query('prepare in_sql (int) as select id + $1 as x from only_here');
  const named = { name: 'named', text: 'select id * $1 as x from only_here', values: [2] };
  expect((await client.query(named)).rows).toEqual([{ x: 14 }]);
  await client.query('begin');
  await client.query("set work_mem = '9MB'");
  await client.query("set local statement_timeout = '9s'");
  await client.query('rollback');
  await client.query('set role weak');
  const state = `select current_setting('datestyle') as datestyle, current_setting('timezone') as timezone,
    current_setting('search_path') as search_path, current_setting('work_mem') as work_mem,
    current_setting('app.user') as app_user, current_setting('statement_timeout') as statement_timeout,
    current_user as who, session_user as me`;
  const before = (await client.query(state)).rows;
  expect(before).toEqual([
    {
      datestyle: 'German, DMY',
      timezone: 'Asia/Tokyo',
      search_path: 's, public',
      work_mem: '7MB',
      app_user: "it's me",
      statement_timeout: '70s',
      who: 'weak',
      me: 'postgres',
    },
  ]);

  await stage.kill();
  expect((await client.query(state)).rows).toEqual(before);
  expect((await client.query({ ...named, values: [3] })).rows).toEqual([{ x: 21 }]);
  expect((await client.query('execute in_sql(5)')).rows).toEqual([{ x: 12 }]);
  await stage.direct("select pg_notify('news', 'hello')");
  await eventually(() => told.length > 0);
  expect(told).toEqual(['news hello']);
  await client.query('reset role');
  await client.query('insert into public.t values (1, current_user)');
  expect(await stage.direct('select v from t')).toEqual([{ v: 'postgres' }]);
  expect(client.lost).toEqual([]);
});

it('keeps the unnamed statement, and statements that were closed stay closed', async () => {
  const client = await stage.raw();
  client.send(
    serialize.parse({ name: 'gone', text: 'select 1' }),
    serialize.close({ type: 'S', name: 'gone' }),
    serialize.parse({ text: 'select $1::int + 1' }),
    serialize.sync(),
  );
  await client.ready();
  await stage.kill();
  client.send(serialize.bind({ values: ['41'] }), serialize.execute({}), serialize.sync());
  expect((await client.ready()).map(show)).toEqual(['2', 'D:......42', 'C:SELECT 1.', 'Z:I']);
  client.send(serialize.bind({ statement: 'gone' }), serialize.execute({}), serialize.sync());
  expect((await client.ready()).map(show)).toEqual([expect.stringMatching(/^E:26000:/), 'Z:I']);
});

it('does not trouble a client about its last unnamed statement', async () => {
  const client = await stage.raw();
  await query(client, 'create table short_lived (id int)');
  client.send(
    serialize.parse({ text: 'select * from short_lived' }),
    serialize.bind({}),
    serialize.execute({}),
    serialize.sync(),
  );
  await client.ready();
  await stage.direct('drop table short_lived');
  await stage.kill();
  expect(await query(client, 'select 1')).toEqual(expect.arrayContaining(['D:......1', 'Z:I']));
});

it('tells a client of parameters only what it does not know', async () => {
  const client = await stage.raw();
  await query(client, "set timezone = 'Asia/Tokyo'");
  await query(client, 'begin');
  expect(await query(client, "set datestyle = 'German'")).toEqual([
    'C:SET.',
    expect.stringMatching(/^S:DateStyle.German/),
    'Z:T',
  ]);
  await stage.kill();
  expect(await query(client, 'show datestyle')).not.toContainEqual(expect.stringMatching(/^S:/));
  expect(await query(client, 'rollback')).toEqual(
    expect.arrayContaining(['C:ROLLBACK.', expect.stringMatching(/^S:DateStyle.ISO/), 'Z:I']),
  );
  expect(await value(client, 'show datestyle')).toContain('ISO');
  expect(await value(client, 'show timezone')).toContain('Tokyo');
});

it('takes over settings that the server itself has changed', async () => {
  const client = await stage.raw();
  await stage.direct("alter role postgres set datestyle = 'SQL'");
  await stage.kill();
  const answer = await query(client, 'show datestyle');
  expect(answer).toEqual(
    expect.arrayContaining([expect.stringMatching(/^S:DateStyle.SQL/), expect.stringMatching(/^D:......SQL/)]),
  );
  await stage.direct('alter role postgres reset datestyle');
});
