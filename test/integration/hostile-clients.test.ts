import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  cancelRequest,
  connectPg,
  errorFields,
  GSS_REQUEST,
  message,
  type PgClient,
  RawClient,
  SSL_REQUEST,
  startupPacket,
  type TestGateway,
  useGateway,
} from '../kit/gateway.js';
import { eventually, useServer } from '../kit/servers.js';

const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

const holder = useServer({ settings: { fsync: 'off' }, hba: ['host all all 127.0.0.1/32 trust'] });
beforeAll(async () => {
  const admin = await connectPg(holder.server);
  await admin.query("create role known login password 'right'; create table t (id int primary key)");
  await admin.end();
});

const open = useGateway(holder, {
  listener: { limits: { greetingTimeout: '2s', request: '1MiB' } },
  logLevel: 'silent',
});
const guarded = useGateway(holder, {
  tls: 'require',
  users: { known: 'right', postgres: 'other' },
  listener: { auth: 'scram-sha-256' },
  logLevel: 'silent',
});
const md5 = useGateway(holder, { users: { known: 'right' }, listener: { auth: 'md5' }, logLevel: 'silent' });
const password = useGateway(holder, {
  tls: 'require',
  users: { known: 'right' },
  listener: { auth: 'password' },
  logLevel: 'silent',
});
const small = useGateway(holder, {
  listener: { limits: { clients: 10, greetings: 5, greetingTimeout: '500ms' } },
  logLevel: 'silent',
});

const header = (type: string, length: number): Buffer => {
  const bytes = Buffer.alloc(type.length + 4);
  bytes.write(type, 'latin1');
  bytes.writeUInt32BE(length >>> 0, type.length);
  return bytes;
};

/** How many sessions a gateway has in its books. */
function books(to: TestGateway): { clients: number; keys: number; greetings: number } {
  const [door] = (to.gateway as unknown as { doors: { keys: Map<string, unknown>; greetings: number }[] }).doors;
  const [{ clients }] = (to.gateway.status() as { listeners: { clients: number }[] }).listeners;
  return { clients, keys: door.keys.size, greetings: door.greetings };
}

/** The SQLSTATE of the last error that a client heard; '' when none. */
const heard = (client: RawClient): string => {
  const error = client.messages.findLast(({ type }) => type === 'E');
  return error === undefined ? '' : errorFields(error.bytes).code;
};

/** A session that must not notice anything, with an open transaction. */
let bystander: PgClient;
beforeEach(async () => {
  bystander = await connectPg(open);
  await bystander.query('begin; insert into t values (1)');
});
afterEach(async () => {
  expect((await bystander.query('select * from t')).rows).toEqual([{ id: 1 }]);
  await bystander.query('rollback');
  expect(bystander.errors).toEqual([]);
  await bystander.end();
});

describe('who may not enter', () => {
  const ssl = { rejectUnauthorized: false };
  it.each([
    ['SCRAM', guarded, ssl],
    ['md5', md5, false],
    ['password', password, ssl],
  ] as const)('%s: a wrong password and an unknown user look the same', async (_, to, tls) => {
    for (const [user, word] of [
      ['known', 'wrong'],
      ['unknown', 'right'],
    ]) {
      await expect(connectPg(to, { user, password: word, ssl: tls })).rejects.toMatchObject({
        code: '28P01',
        message: `password authentication failed for user "${user}"`,
      });
    }
    const client = await connectPg(to, { user: 'known', password: 'right', ssl: tls });
    expect((await client.query('select current_user as u')).rows).toEqual([{ u: 'known' }]);
    await client.end();
    await eventually(() => books(to).clients === 0);
  });

  it('no TLS where it is required', async () => {
    await expect(connectPg(guarded, { user: 'known', password: 'right', ssl: false })).rejects.toMatchObject({
      code: '28000',
    });
  });

  it('an answer of SCRAM that is not one', async () => {
    for (const answer of [
      message('p', 'nonsense'),
      message('p', 'SCRAM-SHA-256\0', Buffer.from([0, 0, 0, 1]), 'x'),
      message('Q', 'select 1\0'),
      header('p', 0),
      header('p', 0x7fffffff),
    ]) {
      const client = await RawClient.open(guarded);
      await client.startTls();
      await client.write(startupPacket({ user: 'known', database: 'postgres' }));
      await client.until('R');
      await client.write(answer);
      await client.untilClosed();
      expect(client.messages.some(({ type }) => type === 'Z')).toBe(false);
    }
    await eventually(() => books(guarded).clients === 0);
  });
});

const BAD_BEGINNINGS: readonly (readonly [string, Buffer])[] = [
  ['length 0', header('', 0)],
  ['length 3', header('', 3)],
  ['length 2^31', header('', 0x80000000)],
  ['length 2^31 - 1', header('', 0x7fffffff)],
  ['length 2^32 - 1', header('', 0xffffffff)],
  ['longer than a startup packet may be', Buffer.concat([header('', 20_000), Buffer.alloc(20_000, 65)])],
  ['HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
  ['a TLS handshake where there is none', Buffer.concat([Buffer.from([22, 3, 1, 2, 0, 1]), Buffer.alloc(512, 1)])],
  ['protocol 2.0', startupPacket({ user: 'postgres' }, 0x20000)],
  ['protocol 4.0', startupPacket({ user: 'postgres' }, 0x40000)],
  ['no user', startupPacket({ database: 'postgres' })],
  ['no terminator', Buffer.concat([header('', 12), Buffer.from([0, 3, 0, 0, 65, 65, 65, 65])])],
  ['no value', message('', Buffer.from([0, 3, 0, 0]), 'user\0')],
  ['bytes behind the terminator', message('', Buffer.from([0, 3, 0, 0]), 'user\0postgres\0\0', 'more')],
  ['text that is not UTF-8', message('', Buffer.from([0, 3, 0, 0]), 'user\0', Buffer.from([0xff, 0xfe]), '\0\0')],
  ['TLS asked for twice', Buffer.concat([SSL_REQUEST, SSL_REQUEST])],
  ['GSSAPI asked for twice', Buffer.concat([GSS_REQUEST, GSS_REQUEST])],
  ['a cancel request without a key', message('', Buffer.from([4, 210, 22, 46]))],
  ['a cancel request with a key too long', cancelRequest(Buffer.alloc(1000))],
  ['a cancel request with an unknown key', cancelRequest(Buffer.alloc(8, 9))],
  ['replication in no spelling', startupPacket({ user: 'postgres', replication: 'perhaps' })],
];

describe('bad beginnings', () => {
  it.each(BAD_BEGINNINGS)('%s', async (_, bytes) => {
    for (const chop of ['whole', 'bytes'] as const) {
      const client = await RawClient.open(open);
      await client.write(bytes.length > 5000 && chop === 'bytes' ? bytes.subarray(0, 5000) : bytes, chop);
      await client.untilClosed();
      expect(client.messages.filter(({ type }) => type !== 'E')).toEqual([]);
    }
    await eventually(() => books(open).clients === 1, { message: 'only the bystander is left' });
  });
});

/** What is wrong after login, and the SQLSTATE that is due; '' when the session goes on. */
const BAD_MESSAGES: readonly (readonly [string, Buffer, string])[] = [
  ['length 0', header('Q', 0), '08P01'],
  ['length 3', header('Q', 3), '08P01'],
  ['length 2^31', header('Q', 0x80000000), '08P01'],
  ['length 2^32 - 1', header('Q', 0xffffffff), '08P01'],
  ['a header of 2 GiB', header('Q', 0x7fffffff), '54000'],
  ['a Parse of 2 GiB', header('P', 0x7fffffff), '54000'],
  ['a Query beyond the limit', message('Q', `${' '.repeat(2 ** 20)}\0`), '54000'],
  ['an unknown type', message('z', 'abc'), '08P01'],
  ['a message of the server', message('T', 'abc'), '08P01'],
  ['a password that nobody asked for', message('p', 'secret\0'), '08P01'],
  ['a zero byte', Buffer.alloc(16), '08P01'],
  ['text without an end', message('Q', 'select 1'), '08P01'],
  ['Parse without text', message('P', 'a\0'), '08P01'],
  ['Bind without a statement', message('B', 'p\0'), '08P01'],
  ['Execute without a name', message('E', 'abc'), '08P01'],
  ['Close of nothing', message('C'), '08P01'],
  ['random bytes', Buffer.concat([Buffer.from([0x80]), randomBytes(4000)]), '08P01'],
  ['a second startup packet', startupPacket({ user: 'postgres' }), '08P01'],
  ['SSLRequest after login', SSL_REQUEST, '08P01'],
  ['data of COPY that nobody asked for', Buffer.concat([message('d', 'x\n'), message('c')]), ''],
  ['the failure of no COPY', message('f', 'x\0'), ''],
];

describe('bad messages after login', () => {
  it.each(BAD_MESSAGES)('%s', async (_, bytes, code) => {
    for (const where of ['idle', 'transaction', 'batch', 'answer']) {
      const client = await RawClient.login(open);
      if (where === 'transaction') await client.query('begin');
      if (where === 'batch') await client.write(message('P', 's\0select 1\0', Buffer.alloc(2)));
      if (where === 'answer') await client.write(message('Q', 'select pg_sleep(0.02)\0'));
      await client.write(bytes);
      if (code === '') {
        const more = where === 'batch' ? 'the batch goes on' : where;
        const answer = await client.ask(message('Q', 'select 1\0'), where === 'answer' ? 2 : 1);
        expect(answer.at(-2)?.type, more).toBe('C');
        await client.end();
      } else {
        await client.untilClosed();
        expect(heard(client), where).toBe(code);
      }
    }
    await eventually(() => books(open).clients === 1, { message: 'only the bystander is left' });
  });

  it('a byte at a time is no fault', async () => {
    const client = await RawClient.login(open, { chop: 'bytes' });
    const answer = await client.ask(message('Q', "select repeat('x', 100)\0"), 1, 'bytes');
    expect(answer.map(({ type }) => type).join('')).toBe('TDCZ');
    await client.end();
  });

  it('a malformed message of the right length leaves the answer to the server', async () => {
    const client = await RawClient.login(open);
    await client.write(Buffer.concat([message('D', 'X\0'), message('S')]));
    const answer = await client.until('Z');
    expect(answer.map(({ type }) => type).join('')).toBe('EZ');
    await client.end();
  });
});

describe('half-open clients', () => {
  it.each([
    ['nothing', Buffer.alloc(0)],
    ['half a length', Buffer.from([0, 0])],
    ['half a startup packet', startupPacket({ user: 'postgres' }).subarray(0, 12)],
    ['half a TLS request', SSL_REQUEST.subarray(0, 5)],
  ])('%s is said, and then silence', async (_, bytes) => {
    const started = performance.now();
    const client = await RawClient.open(small);
    if (bytes.length > 0) await client.write(bytes);
    await client.untilClosed(5000);
    expect(performance.now() - started).toBeGreaterThan(400);
    await eventually(() => books(small).clients === 0 && books(small).greetings === 0);
  });

  it('a startup packet at a crawl does not outlast the time for it', async () => {
    const client = await RawClient.open(small);
    const packet = startupPacket({ user: 'postgres', application_name: 'x'.repeat(500) });
    const started = performance.now();
    for (let i = 0; !client.closed && i < packet.length; i++) {
      await client.write(packet.subarray(i, i + 1)).catch(() => {});
      await sleep(10);
    }
    expect(client.closed).toBe(true);
    expect(performance.now() - started).toBeLessThan(4000);
  });

  it('silence in the midst of the authentication', async () => {
    const client = await RawClient.open(guarded);
    await client.startTls();
    await client.write(startupPacket({ user: 'known', database: 'postgres' }));
    await client.until('R');
    client.destroy();
    await eventually(() => books(guarded).clients === 0);
  });
});

describe('floods', () => {
  it('beyond limits.clients', async () => {
    const inside: RawClient[] = [];
    for (let i = 0; i < 10; i++) inside.push(await RawClient.login(small));
    const refused = await Promise.all(
      Array.from({ length: 30 }, async () => {
        const client = await RawClient.open(small);
        await client.write(startupPacket({ user: 'postgres', database: 'postgres' })).catch(() => {});
        await client.untilClosed();
        return client;
      }),
    );
    expect(refused.every((client) => !client.messages.some(({ type }) => type === 'Z'))).toBe(true);
    expect(new Set(refused.map(heard))).toEqual(new Set(['53300']));
    for (const client of inside) expect((await client.query('select 1')).at(-1)?.type).toBe('Z');
    await inside.pop()?.end();
    await eventually(() => books(small).clients === 9);
    inside.push(await RawClient.login(small));
    await Promise.all(inside.map((client) => client.end()));
    await eventually(() => books(small).clients === 0 && books(small).keys === 0);
  });

  it('beyond limits.greetings', async () => {
    const silent = await Promise.all(Array.from({ length: 5 }, () => RawClient.open(small)));
    await eventually(() => books(small).greetings === 5);
    await expect(connectPg(small)).rejects.toMatchObject({ code: '53300' });
    await Promise.all(silent.map((client) => client.untilClosed()));
    const client = await connectPg(small);
    await client.end();
    await eventually(() => books(small).clients === 0 && books(small).greetings === 0);
  });
});

describe('ten thousand of them', () => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;

  const memory = async () => {
    // Twice, with a turn of the loop between: handles are let go of by their close callbacks.
    gc();
    await sleep(50);
    gc();
    return process.memoryUsage();
  };

  it(`leaves nothing behind (SEED=${SEED})`, { timeout: 120_000 }, async () => {
    let state = SEED;
    const random = (n: number) => {
      state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
      return (state >> 8) % n;
    };
    const one = async () => {
      const client = await RawClient.open(open);
      const kind = random(10);
      if (kind < 5) {
        await client.write(BAD_BEGINNINGS[random(BAD_BEGINNINGS.length)][1]).catch(() => {});
        if (random(2) === 0) await client.untilClosed();
      } else if (kind < 7) {
        const bytes = Buffer.alloc(1 + random(64));
        for (let i = 0; i < bytes.length; i++) bytes[i] = random(256);
        await client.write(bytes).catch(() => {});
      } else if (kind === 7) {
        await client.write(startupPacket({ user: 'postgres' }).subarray(0, random(12))).catch(() => {});
      } else if (random(8) === 0) {
        // Logins are costly; enough of them that what a session holds would show.
        await client.start().catch(() => {});
        if (!client.closed) await client.write(BAD_MESSAGES[random(BAD_MESSAGES.length)][1]).catch(() => {});
      }
      if (random(2) === 0) client.socket.resetAndDestroy();
      else client.destroy();
    };
    const many = async (count: number) => {
      let left = count;
      await Promise.all(
        Array.from({ length: 50 }, async () => {
          while (left-- > 0) await one();
        }),
      );
      await eventually(() => books(open).clients === 1 && books(open).greetings === 0, { message: 'all are gone' });
    };
    await many(1000);
    const before = await memory();
    const resources = () =>
      process.getActiveResourcesInfo().filter((name) => name.startsWith('TCP') || name === 'Timeout').length;
    const base = resources();
    await many(9000);
    const after = await memory();
    expect(books(open)).toEqual({ clients: 1, keys: 1, greetings: 0 });
    expect(resources()).toBeLessThan(base + 20);
    expect((after.heapUsed - before.heapUsed) / 2 ** 20).toBeLessThan(10);
    expect((after.rss - before.rss) / 2 ** 20).toBeLessThan(100);
    const admin = await connectPg(holder.server);
    await eventually(
      async () => {
        const { rows } = await admin.query(
          "select count(*)::int as n from pg_stat_activity where backend_type = 'client backend'",
        );
        return rows[0].n < 30;
      },
      { message: 'the server has no sessions of theirs' },
    );
    await admin.end();
  });
});
