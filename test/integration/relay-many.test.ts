import { serialize } from 'pg-protocol';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  cancelRequest,
  connectPg,
  errorFields,
  RawClient,
  type RawMessage,
  rowOf,
  useGateway,
} from '../kit/gateway.js';
import { eventually, useServer } from '../kit/servers.js';

/** Many at once, and what concerns more than one session: as direct. */

const N = 1000;

const holder = useServer({ settings: { fsync: 'off' } });
beforeAll(async () => {
  const admin = await connectPg(holder.server);
  await admin.query('create table many (id int primary key, v text)');
  await admin.end();
});
const gateway = useGateway(holder);

beforeEach(async () => {
  const admin = await connectPg(holder.server);
  await admin.query("truncate many; insert into many select g, 'v' || g from generate_series(1, 100) g");
  await admin.end();
});

const types = (messages: RawMessage[]) => messages.map(({ type }) => type).join('');
const x = (text: string, values: unknown[] = []): Buffer =>
  Buffer.concat([
    serialize.parse({ text }),
    serialize.bind({ values }),
    serialize.describe({ type: 'P' }),
    serialize.execute(),
  ]);
const sync = serialize.sync();
const repeat = (part: (i: number) => Uint8Array): Buffer => Buffer.concat(Array.from({ length: N }, (_, i) => part(i)));

const reads = (i: number) => x('select v from many where id = $1', [String((i % 100) + 1)]);
const writes = (i: number) => x('insert into many values ($1, $2)', [String(1000 + i), `w${i}`]);
const mixed = (i: number) => (i % 2 === 0 ? reads(i) : writes(i));
const kinds = { reads, writes, mixed };
const rowsAfter = { reads: 100, writes: 100 + N, mixed: 100 + N / 2 };

/** Runs a batch direct and through the gateway; both must answer the same. */
async function both(script: (client: RawClient) => Promise<RawMessage[]>): Promise<RawMessage[]> {
  const heard: Buffer[] = [];
  let last: RawMessage[] = [];
  for (const to of [holder.server, gateway]) {
    const client = await RawClient.login(to);
    last = await script(client);
    heard.push(Buffer.concat(last.map(({ bytes }) => bytes)));
    await client.end();
    if (to === gateway) break;
    const admin = await connectPg(holder.server);
    await admin.query('delete from many where id > 100');
    await admin.end();
  }
  // As one comparison of bytes first: a difference of thousands of messages is no use to a reader.
  if (!heard[0].equals(heard[1])) {
    const at = heard[0].findIndex((byte, i) => byte !== heard[1][i]);
    expect(heard[1].toString('latin1', at - 60, at + 60)).toBe(heard[0].toString('latin1', at - 60, at + 60));
  }
  return last;
}

async function count(): Promise<number> {
  const admin = await connectPg(holder.server);
  const { rows } = await admin.query('select count(*)::int as n from many');
  await admin.end();
  return rows[0].n;
}

describe(`${N} pipelined statements`, () => {
  describe.each(Object.keys(kinds) as (keyof typeof kinds)[])('%s', (kind) => {
    it('with one Sync', async () => {
      await both((client) => client.ask(Buffer.concat([repeat(kinds[kind]), sync])));
      expect(await count()).toBe(rowsAfter[kind]);
    });

    it('with a Sync each', async () => {
      await both((client) =>
        client.ask(
          repeat((i) => Buffer.concat([kinds[kind](i), sync])),
          N,
        ),
      );
      expect(await count()).toBe(rowsAfter[kind]);
    });

    it('in a transaction', async () => {
      await both((client) =>
        client.ask(
          Buffer.concat([x('begin'), sync, repeat((i) => Buffer.concat([kinds[kind](i), sync])), x('commit'), sync]),
          N + 2,
        ),
      );
      expect(await count()).toBe(rowsAfter[kind]);
    });

    it('in a transaction with one Sync', async () => {
      await both((client) => client.ask(Buffer.concat([x('begin'), repeat(kinds[kind]), x('commit'), sync])));
      expect(await count()).toBe(rowsAfter[kind]);
    });
  });

  it('the last of one Sync fails: nothing is done', async () => {
    await both((client) => client.ask(Buffer.concat([repeat(writes), x('insert into many values (1)'), sync])));
    expect(await count()).toBe(100);
  });

  it('each second one fails', async () => {
    const heard = await both((client) =>
      client.ask(
        repeat((i) => Buffer.concat([i % 2 === 0 ? writes(i) : x('insert into many values (1)'), sync])),
        N,
      ),
    );
    expect(types(heard).replace(/[^E]/g, '').length).toBe(N / 2);
    expect(await count()).toBe(100 + N / 2);
  });

  it('as simple queries', async () => {
    await both((client) =>
      client.ask(
        repeat((i) => serialize.query(`select ${i}; select v from many where id = 1`)),
        N,
      ),
    );
    await both((client) =>
      client.ask(
        repeat((i) => serialize.query(`insert into many values (${5000 + i})`)),
        N,
      ),
    );
    expect(await count()).toBe(100 + N);
  });

  it('in one Query', async () => {
    await both((client) => client.query(Array.from({ length: N }, (_, i) => `select ${i}`).join(';')));
    await both((client) =>
      client.query(Array.from({ length: N }, (_, i) => `insert into many values (${2000 + i})`).join(';')),
    );
    expect(await count()).toBe(100 + N);
  });

  it('from 20 clients at a time', async () => {
    const clients = await Promise.all(Array.from({ length: 20 }, () => RawClient.login(gateway)));
    await Promise.all(
      clients.map((client, c) =>
        client.ask(
          Buffer.concat(
            Array.from({ length: 50 }, (_, i) =>
              Buffer.concat([x('insert into many values ($1)', [String(1000 + c * 50 + i)]), sync]),
            ),
          ),
          50,
        ),
      ),
    );
    expect(await count()).toBe(100 + N);
    await Promise.all(clients.map((client) => client.end()));
  });
});

describe('portals with row limits', () => {
  it('fetches a large result in parts, with other statements between', async () => {
    const heard = await both(async (client) => {
      const all = await client.query('begin');
      all.push(
        ...(await client.ask(
          Buffer.concat([
            serialize.parse({ text: "select g, repeat('x', 100) from generate_series(1, 5000) g" }),
            serialize.bind({ portal: 'p' }),
            serialize.execute({ portal: 'p', rows: 100 }),
            sync,
          ]),
        )),
      );
      for (let i = 1; i <= 50; i++) {
        all.push(
          ...(await client.ask(
            Buffer.concat([
              serialize.execute({ portal: 'p', rows: 100 }),
              i % 10 === 0 ? x('select 1') : Buffer.alloc(0),
              sync,
            ]),
          )),
        );
      }
      all.push(...(await client.query('commit')));
      return all;
    });
    expect(heard.filter(({ type }) => type === 'D').length).toBe(5005);
  });
});

describe('LISTEN and NOTIFY', () => {
  it('reach other sessions, idle and busy, in order', async () => {
    const [a, b, sender] = await Promise.all([
      RawClient.login(gateway),
      RawClient.login(gateway),
      RawClient.login(gateway),
    ]);
    await a.query('listen news');
    await b.query('listen news');
    await b.query('begin');
    for (let i = 0; i < 20; i++)
      await sender.query(i % 2 === 0 ? `notify news, '${i}'` : `select pg_notify('news', '${i}')`);
    await sender.query("begin; notify news, 'undone'; rollback");
    const heard = await a.until('A', 20);
    const payload = ({ bytes }: RawMessage) => bytes.toString('utf8', 9).split('\0')[1];
    expect(heard.filter(({ type }) => type === 'A').map(payload)).toEqual(
      Array.from({ length: 20 }, (_, i) => String(i)),
    );
    // Inside a transaction the server keeps them back until its end.
    expect(types(await b.query('select 1'))).toBe('TDCZ');
    const later = await b.query('commit');
    if (!types(later).includes('A')) later.push(...(await b.until('A', 20)));
    else later.push(...b.rest());
    expect(later.filter(({ type }) => type === 'A').map(payload)).toEqual(
      Array.from({ length: 20 }, (_, i) => String(i)),
    );
    await Promise.all([a, b, sender].map((client) => client.end()));
  });
});

describe('large objects', () => {
  it('are written and read by their descriptors', async () => {
    const client = await connectPg(gateway);
    const data = Buffer.alloc(300_000, 'large object ');
    await client.query('begin');
    const oid = (await client.query('select lo_creat(-1) as oid')).rows[0].oid;
    const fd = (await client.query('select lo_open($1, $2) as fd', [oid, 0x60000])).rows[0].fd;
    for (let at = 0; at < data.length; at += 50_000) {
      await client.query('select lowrite($1, $2)', [fd, data.subarray(at, at + 50_000)]);
    }
    await client.query('select lo_lseek($1, 0, 0)', [fd]);
    const back = (await client.query('select loread($1, $2) as data', [fd, data.length])).rows[0].data;
    expect(data.equals(back)).toBe(true);
    await client.query('commit');
    expect((await client.query('select length(lo_get($1)) as n', [oid])).rows).toEqual([{ n: data.length }]);
    await client.query('select lo_unlink($1)', [oid]);
    await client.end();
  });
});

describe('cancel', () => {
  const cancelled = (messages: RawMessage[]) => {
    const error = messages.find(({ type }) => type === 'E');
    return error === undefined ? types(messages) : errorFields(error.bytes).code;
  };

  /** Says a CancelRequest; resolves when it was taken. */
  async function cancel(key: Uint8Array): Promise<void> {
    const side = await RawClient.open(gateway);
    await side.write(cancelRequest(key));
    await side.untilClosed();
    expect(side.messages).toEqual([]);
  }

  const sleeping = async (n: number) => {
    const admin = await connectPg(holder.server);
    await eventually(
      async () => {
        const { rows } = await admin.query(
          "select from pg_stat_activity where query like '%pg_sleep%' and state = 'active' and pid <> pg_backend_pid()",
        );
        return rows.length === n;
      },
      { message: `${n} sleeping` },
    );
    await admin.end();
  };

  it.each([0x30000, 0x30002])('the key that the client was given, protocol %i', async (protocol) => {
    const client = await RawClient.login(gateway, { protocol });
    const answer = client.query('select pg_sleep(30)');
    await sleeping(1);
    await cancel(client.key);
    expect(cancelled(await answer)).toBe('57014');
    expect(types(await client.query('select 1'))).toBe('TDCZ');
    // In a transaction, and in a write that the gateway guards.
    await client.query('begin');
    const inside = client.query('select pg_sleep(30)');
    await sleeping(1);
    await cancel(client.key);
    expect(types(await inside)).toMatch(/EZ$/);
    expect(types(await client.query('select 1'))).toBe('EZ');
    await client.query('rollback');
    const guarded = client.query('insert into many select 900000 from pg_sleep(30)');
    await sleeping(1);
    await cancel(client.key);
    expect(cancelled(await guarded)).toBe('57014');
    const [row] = (await client.query('select count(*) from many')).filter(({ type }) => type === 'D');
    expect(rowOf(row.bytes)).toEqual(['100']);
    await client.end();
  });

  it('a wrong key, another session, and nothing to cancel: nobody is harmed', async () => {
    const client = await RawClient.login(gateway);
    const other = await RawClient.login(gateway);
    await cancel(other.key);
    const answer = client.query('select pg_sleep(1)');
    await sleeping(1);
    const wrong = Buffer.from(client.key);
    wrong[wrong.length - 1] ^= 1;
    await cancel(wrong);
    await cancel(other.key);
    await cancel(Buffer.alloc(8));
    await cancel(Buffer.alloc(256, 7));
    expect(types(await answer)).toBe('TDCZ');
    expect(types(await other.query('select 1'))).toBe('TDCZ');
    await Promise.all([client.end(), other.end()]);
  });

  it('a key of a session that left is void', async () => {
    const client = await RawClient.login(gateway);
    const { key } = client;
    await client.end();
    await cancel(key);
  });
});
