import { describe, expect, it } from 'vitest';
import { errorOf, useFront } from '../kit/front.js';
import { message, type PgClient } from '../kit/gateway.js';
import { lost, next, worksAgain } from '../kit/lost.js';

/** F19: state of a session that a new server is brought to. */
const front = useFront({}, 'create table t (id int, v text); select lo_from_bytea(4711, $$large$$)');

describe('large objects', () => {
  it('keep their descriptors in the open transaction', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('begin');
    const { rows } = await client.query("select lo_open(4711, x'60000'::int) as fd");
    expect((await client.query('select lowrite($1, $2) as n', [rows[0].fd, Buffer.from('LA')])).rows).toEqual([
      { n: 2 },
    ]);
    await front.failover();
    expect((await client.query('select lo_tell($1) as at', [rows[0].fd])).rows).toEqual([{ at: 2 }]);
    expect((await client.query('select loread($1, 9) as v', [rows[0].fd])).rows[0].v.toString()).toBe('rge');
    await client.query('commit');
    expect((await client.query('select lo_get(4711) as v')).rows[0].v.toString()).toBe('LArge');
    // A descriptor ends with its transaction, as on the server itself.
    expect((await errorOf(client.query('select lo_tell($1)', [rows[0].fd]))).code).toBe('42704');
    await worksAgain(client);
  });

  it('and so do those that libpq opens by function calls', async () => {
    const gateway = await front.gateway();
    const client = await front.raw(gateway);
    // Function oid, binary arguments, binary result (protocol manual, "FunctionCall").
    const call = async (oid: number, ...args: number[]) => {
      const body = Buffer.alloc(12 + 8 * args.length);
      body.writeInt32BE(oid, 0);
      body.writeInt16BE(1, 4);
      body.writeInt16BE(1, 6);
      body.writeInt16BE(args.length, 8);
      for (const [i, arg] of args.entries()) {
        body.writeInt32BE(4, 10 + 8 * i);
        body.writeInt32BE(arg, 14 + 8 * i);
      }
      body.writeInt16BE(1, 10 + 8 * args.length);
      const answer = await client.ask(message('F', body));
      expect(answer.map(({ type }) => type).join('')).toBe('VZ');
      return answer[0].bytes.readInt32BE(9);
    };
    const [LO_OPEN, LO_LSEEK, LO_TELL, INV_READ] = [952, 956, 958, 0x40000];
    await client.query('begin');
    const fd = await call(LO_OPEN, 4711, INV_READ);
    expect(await call(LO_LSEEK, fd, 3, 0)).toBe(3);
    await front.failover();
    expect(await call(LO_TELL, fd)).toBe(3);
    expect((await client.query('commit')).map(({ type }) => type).join('')).toBe('CZ');
  });
});

describe('LISTEN', () => {
  it('goes on, also when it was said in a transaction whose commit was in doubt', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    const heard: string[] = [];
    client.on('notification', ({ channel, payload }) => heard.push(`${channel} ${payload}`));
    await client.query('listen one; listen gone');
    await client.query('unlisten gone');
    await client.query('begin');
    await client.query('listen two');
    await client.query('insert into t values (500)');
    front.proxy.when(
      'client',
      (bytes) => bytes.includes('COMMIT\0'),
      (connection) => connection.holdServerReplies(),
    );
    const commit = client.query('COMMIT');
    await front.appears('select from t where id = 500');
    await front.failover();
    await commit;
    await client.query('select 1');
    await front.pair.primary.query("select pg_notify(c, 'x') from unnest(array['one', 'two', 'gone']) c");
    while (heard.length < 2) await client.query('select 1');
    expect(heard.sort()).toEqual(['one x', 'two x']);
    await worksAgain(client);
  });
});

describe('settings', () => {
  const read = async (client: PgClient, names: string[]) =>
    (
      await client.query('select name, current_setting(name, true) as value from unnest($1::text[]) name', [names])
    ).rows.map(({ name, value }) => `${name}=${value}`);

  it('made by set_config come back: literals, parameters, custom and lists', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query("select set_config('app.literal', 'it''s \\', false), set_config('work_mem', '7MB', false)");
    await client.query('select set_config($1, $2, false)', ['app.bound', 'b']);
    await client.query('select set_config($1, $2, $3)', ['app.all_bound', 'c', false]);
    await client.query({ name: 'named', text: 'select set_config($1, $2, false)', values: ['App.Named', 'd'] });
    await client.query('select set_config($1, $2, false)', ['search_path', 'pg_catalog, "odd, name"']);
    await client.query('begin');
    await client.query("select set_config('app.kept', 'e', false)");
    await client.query("select set_config('app.local', 'f', true)");
    await client.query('commit');
    await client.query('begin');
    await client.query("select set_config('app.undone', 'g', false)");
    await client.query('rollback');
    await client.query("set app.set = 'h'");
    await client.query('set role pg_monitor');
    const names = [
      ...['literal', 'bound', 'all_bound', 'named', 'kept', 'local', 'undone', 'set'].map((name) => `app.${name}`),
      ...['work_mem', 'search_path', 'role'],
    ];
    const before = await read(client, names);
    await front.failover();
    const after = await read(client, names);
    // An undone custom setting is an empty one on a server that has heard of it, and none on another.
    expect(after.map((each) => each.replace(/=null$/, '='))).toEqual(before.map((each) => each.replace(/=null$/, '=')));
    expect(client.errors).toEqual([]);
  });

  it('whose name only the server knows are named when they are lost', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query("select set_config('app.' || 'computed', 'x', false)");
    await front.failover();
    expect(await next(client)).toMatchObject(lost('session setting'));
    await worksAgain(client);
    await front.pair.rebuild();
    await front.failover();
    await worksAgain(client);
  });

  it('and statements that cannot be restored are named once, without data', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('create temp table scratch (id int)');
    await client.query({ name: 'by_name', text: 'select * from scratch' });
    await client.query('prepare in_sql as select id + 1 from scratch');
    await client.query("set role to 'pg_monitor'");
    await client.query('reset role');
    await client.query('prepare kept as select 1 as one');
    await front.failover();
    const error = await next(client);
    expect(error).toMatchObject(lost('temporary table scratch'));
    expect(error.message).toContain('prepared statement by_name');
    expect(error.message).toContain('prepared statement in_sql');
    expect(error.message).not.toContain('select');
    expect((await client.query('execute kept')).rows).toEqual([{ one: 1 }]);
    await worksAgain(client);
    await front.pair.rebuild();
    await front.failover();
    await worksAgain(client);
    expect((await client.query('execute kept')).rows).toEqual([{ one: 1 }]);
  });
});
