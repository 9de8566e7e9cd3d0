import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cancel, terminate } from '../../codecs/postgres/cancel.js';
import { AUTHENTICATION_OK, greet } from '../../codecs/postgres/greet.js';
import { type CancelKey, type LoginFacts, login } from '../../codecs/postgres/login.js';
import { lookup } from '../../codecs/postgres/lookup.js';
import { parseLsn } from '../../codecs/postgres/lsn.js';
import { frame, frameLength, simpleQuery } from '../../codecs/postgres/messages.js';
import { resolve } from '../../codecs/postgres/outcome.js';
import { type PostgresHistory, probe } from '../../codecs/postgres/probe.js';
import type {
  Exchange,
  GreetContext,
  Greeting,
  Identity,
  LoginContext,
  LoginOutcome,
  LoginResult,
  OutcomeToken,
  Secret,
  ServerFacts,
} from '../../core/contract/index.js';
import { clientTls, connect, type Listener, listen, runExchange, serverTls, type Wire } from '../../core/io/index.js';
import type { EmbeddedClient, EmbeddedServer } from '../../plugins/embedded-postgres/index.js';
import { eventually, restorePair, selfSignedCert, usePair, useServer } from '../kit/servers.js';

const DEADLINE_MS = 20_000;
const CERTIFICATE = selfSignedCert();
const CLIENT_TLS = { side: 'client', host: 'localhost', tls: clientTls({ mode: 'require' }) } as const;

const open: Wire[] = [];
afterAll(() => {
  for (const wire of open) wire.destroy();
});

async function dial(server: EmbeddedServer): Promise<Wire> {
  const wire = await connect({ host: server.host, port: server.port, timeoutMs: DEADLINE_MS });
  open.push(wire);
  return wire;
}

async function run<R>(wire: Wire, exchange: Exchange<R>): Promise<R> {
  const { result, rest } = await runExchange(wire, exchange, {
    frameLength,
    peer: 'server',
    tls: CLIENT_TLS,
    deadlineMs: DEADLINE_MS,
  });
  expect(rest).toHaveLength(0);
  return result;
}

async function enter(
  server: EmbeddedServer,
  user: string,
  secret: Secret | null,
  context: Partial<LoginContext> = {},
): Promise<{ wire: Wire; outcome: LoginOutcome }> {
  const wire = await dial(server);
  const identity: Identity = { user, database: 'postgres', secret };
  return { wire, outcome: await run(wire, login({ identity, startup: null, tls: 'off', ...context })) };
}

/** A logged-in connection of the gateway's own. */
async function logIn(server: EmbeddedServer, user = server.superuser): Promise<{ wire: Wire; login: LoginResult }> {
  const { wire, outcome } = await enter(server, user, null);
  if (!outcome.ok) throw new Error(outcome.error.message);
  return { wire, login: outcome.login };
}

async function askOnce<R>(server: EmbeddedServer, exchange: Exchange<R>, user?: string): Promise<R> {
  const { wire } = await logIn(server, user);
  try {
    return await run(wire, exchange);
  } finally {
    wire.end();
  }
}

const look = (server: EmbeddedServer, user?: string): Promise<ServerFacts> => askOnce(server, probe(), user);
const historyOf = (facts: ServerFacts) => facts.history as PostgresHistory;

// ---------------------------------------------------------------------------------------------------------------- greet

describe('greet in front of a real driver', () => {
  const WELCOME = Buffer.concat([
    AUTHENTICATION_OK,
    frame('S', Buffer.from('server_version\x0018.4\0')),
    frame('K', Buffer.alloc(8, 1)),
    frame('Z', Buffer.from('I')),
  ]);
  let listener: Listener;
  let context: GreetContext;
  let stored: Secret | null;
  let greeting: Greeting | null;

  beforeAll(async () => {
    listener = await listen({
      host: '127.0.0.1',
      port: 0,
      onWire: (wire) => {
        open.push(wire);
        void runExchange(wire, greet(context), {
          frameLength,
          peer: 'client',
          tls: { side: 'server', tls: serverTls(CERTIFICATE) },
          credentials: async (user) => (user === 'app' ? stored : null),
          deadlineMs: DEADLINE_MS,
        }).then(({ result }) => {
          greeting = result;
          if (result.kind === 'session') wire.write(WELCOME);
          else wire.end();
        });
      },
    });
  });
  afterAll(() => listener.close());

  async function visit(user: string, password: string, config: Partial<pg.ClientConfig> = {}): Promise<Error | null> {
    greeting = null;
    const client = new pg.Client({ host: '127.0.0.1', port: listener.port, user, password, database: 'db', ...config });
    client.on('error', () => {});
    try {
      await client.connect();
      return null;
    } catch (error) {
      return error as Error;
    } finally {
      // The gateway says no good-bye here.
      void client.end();
      open.at(-1)?.destroy();
    }
  }

  const SCRAM =
    'SCRAM-SHA-256$4096:5xADK9wSdIcucqTzGuUUCA==$EinFjTyok0MPQmmZ31jFCv63DCsze+Fpn0fDmFcl6xQ=' +
    ':R8gZJR5Hlza57QvlXPkUlHgWlHCqdw7PNgHL3B0bb8o=';

  it.each<[string, Secret | null]>([
    ['trust', null],
    ['password', { password: 'secret' }],
    ['password', { verifier: SCRAM }],
    ['md5', { password: 'secret' }],
    ['md5', { verifier: SCRAM }],
    ['scram-sha-256', { password: 'secret' }],
    ['scram-sha-256', { verifier: SCRAM }],
  ])('lets it in by %s', async (auth, secret) => {
    stored = secret;
    const ssl = { rejectUnauthorized: false };
    for (const config of [{}, { ssl }, { ssl, enableChannelBinding: true }] as Partial<pg.ClientConfig>[]) {
      context = { auth, tls: config.ssl === undefined ? 'off' : 'require', alreadyTls: null };
      expect(await visit('app', 'secret', config)).toBeNull();
      expect(greeting).toMatchObject({ kind: 'session', tls: config.ssl !== undefined, identity: { user: 'app' } });
      if (auth === 'trust') continue;
      for (const user of ['app', 'nobody']) {
        expect(await visit(user, 'wrong', config)).toMatchObject({
          code: '28P01',
          message: `password authentication failed for user "${user}"`,
        });
      }
    }
  });

  it('refuses it without TLS where TLS is required', async () => {
    context = { auth: 'trust', tls: 'require', alreadyTls: null };
    expect(await visit('app', 'x')).toMatchObject({ code: '28000' });
  });
});

// --------------------------------------------------------------------------------------------------------- one server

describe('a real server', () => {
  const held = useServer({
    tls: CERTIFICATE,
    hba: [
      'host all u_password 127.0.0.1/32 password',
      'host all u_md5 127.0.0.1/32 md5',
      'hostssl all u_tls 127.0.0.1/32 scram-sha-256',
      'host all u_scram 127.0.0.1/32 scram-sha-256',
      'host all u_plain,u_monitor 127.0.0.1/32 trust',
    ],
    settings: { log_min_messages: 'fatal' },
  });
  let verifiers: Record<string, string>;

  beforeAll(async () => {
    const client = await held.server.connect();
    try {
      await client.query("SET password_encryption = 'md5'");
      await client.query("CREATE ROLE u_md5 LOGIN PASSWORD 'sécret'");
      await client.query("SET password_encryption = 'scram-sha-256'");
      for (const user of ['u_password', 'u_tls', 'u_scram']) {
        await client.query(`CREATE ROLE ${user} LOGIN PASSWORD 'sécret'`);
      }
      await client.query('CREATE ROLE u_plain LOGIN');
      await client.query('CREATE ROLE u_monitor LOGIN IN ROLE pg_monitor');
      await client.query('CREATE TABLE work (id int PRIMARY KEY)');
      const { rows } = await client.query<{ rolname: string; rolpassword: string }>(
        "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'u\\_%' AND rolpassword IS NOT NULL",
      );
      verifiers = Object.fromEntries(rows.map(({ rolname, rolpassword }) => [rolname, rolpassword]));
    } finally {
      await client.end();
    }
  });

  it.each([
    ['u_password', 'off'],
    ['u_password', 'require'],
    ['u_md5', 'off'],
    ['u_md5', 'prefer'],
    ['u_scram', 'off'],
    ['u_scram', 'require'],
    ['u_tls', 'require'],
    ['u_plain', 'prefer'],
  ] as const)('lets %s in with TLS %s', async (user, tls) => {
    const { wire, outcome } = await enter(held.server, user, user === 'u_plain' ? null : { password: 'sécret' }, {
      tls,
    });
    expect(wire.secure).toBe(tls !== 'off');
    if (!outcome.ok) throw new Error(outcome.error.message);
    const facts = outcome.login.facts as LoginFacts;
    expect(facts.protocol).toEqual({ major: 3, minor: 0 });
    expect(Object.fromEntries(facts.parameters)).toMatchObject({
      application_name: 'outlive',
      client_encoding: 'UTF8',
      session_authorization: user,
    });
    const { rows } = await run(wire, simpleQuery('SELECT pg_backend_pid(), current_user'));
    expect(rows).toEqual([[outcome.login.backendId, user]]);
    wire.end();
    if (user === 'u_plain') return;
    const wrong = await enter(held.server, user, { password: 'wrong' }, { tls });
    expect(wrong.outcome).toMatchObject({ ok: false, transient: false, error: { code: '28P01' } });
  });

  it('lets the md5 verifier in for its password', async () => {
    expect((await enter(held.server, 'u_md5', { verifier: verifiers.u_md5 })).outcome).toMatchObject({ ok: true });
  });

  it('lets the key in that a client has proven to greet, over TLS with channel binding too', async () => {
    for (const [user, tls] of [
      ['u_scram', 'off'],
      ['u_tls', 'require'],
    ] as const) {
      const secrets = new Map([[user, { verifier: verifiers[user] }]]);
      let greeting: Promise<Greeting> | undefined;
      const front = await listen({
        host: '127.0.0.1',
        port: 0,
        onWire: (wire) => {
          open.push(wire);
          greeting = runExchange(wire, greet({ auth: 'scram-sha-256', tls: 'allow', alreadyTls: null }), {
            frameLength,
            peer: 'client',
            tls: { side: 'server', tls: serverTls(CERTIFICATE) },
            credentials: async (name) => secrets.get(name as typeof user) ?? null,
            deadlineMs: DEADLINE_MS,
          }).then(({ result }) => result);
        },
      });
      const wire = await connect({ host: '127.0.0.1', port: front.port, timeoutMs: DEADLINE_MS });
      open.push(wire);
      const identity = { user, database: 'postgres', secret: { password: 'sécret' } };
      // The greeting ends before AuthenticationOk, so this login never does.
      const pending = run(wire, login({ identity, startup: null, tls })).catch(() => null);
      await eventually(() => greeting !== undefined);
      const met = await greeting!;
      wire.destroy();
      await pending;
      await front.close();
      if (met.kind !== 'session') throw new Error('not let in');
      expect(met.identity.secret?.password).toBeUndefined();
      expect((await enter(held.server, user, met.identity.secret, { tls })).outcome).toMatchObject({ ok: true });
    }
  });

  it('passes refusals on', async () => {
    expect((await enter(held.server, 'u_tls', { password: 'sécret' })).outcome).toMatchObject({
      ok: false,
      transient: false,
      error: { code: '28000', message: expect.stringMatching(/no encryption/) },
    });
    expect((await enter(held.server, 'u_scram', null)).outcome).toMatchObject({ ok: false, error: { code: '28000' } });
    const identity = { user: 'u_plain', database: 'nowhere', secret: null };
    expect((await enter(held.server, 'u_plain', null, { identity })).outcome).toMatchObject({
      ok: false,
      error: { code: '3D000' },
    });
  });

  it('speaks protocol 3.2 with a client that does, and cancels by its long key', async () => {
    const startup = { protocol: { major: 3, minor: 2 }, params: [['application_name', 'app']] };
    const { wire, outcome } = await enter(held.server, 'u_plain', null, { startup });
    if (!outcome.ok) throw new Error(outcome.error.message);
    const key = outcome.login.cancelKey as CancelKey;
    expect(outcome.login.facts).toMatchObject({ protocol: { minor: 2 } });
    expect(Buffer.from(key.secret, 'base64').length).toBeGreaterThan(4);
    await cancelled(wire, key);
  });

  it('cancels by a short key', async () => {
    const { wire, login: found } = await logIn(held.server);
    await cancelled(wire, found.cancelKey as CancelKey);
  });

  async function cancelled(wire: Wire, key: CancelKey): Promise<void> {
    const sleeping = run(wire, simpleQuery('SELECT pg_sleep(20)'));
    await eventually(async () => {
      const { rows } = await held.server.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active'", [
        key.pid,
      ]);
      return rows.length === 1;
    });
    const other = await dial(held.server);
    await run(other, cancel(key));
    other.end();
    expect(await sleeping).toMatchObject({ error: { code: '57014', meaning: 'ordinary' } });
    wire.end();
  }

  it('ends sessions, where it may', async () => {
    const victim = await logIn(held.server);
    expect(await askOnce(held.server, terminate(victim.login.backendId), 'u_plain')).toBe(false);
    expect(await askOnce(held.server, terminate(victim.login.backendId))).toBe(true);
    expect(await askOnce(held.server, terminate(victim.login.backendId), 'u_plain')).toBe(true);
  });

  it('looks up credentials', async () => {
    const query = 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1';
    expect(await askOnce(held.server, lookup(query, 'u_scram'))).toEqual({ verifier: verifiers.u_scram });
    expect(await askOnce(held.server, lookup(query, 'u_md5'))).toEqual({ verifier: verifiers.u_md5 });
    expect(await askOnce(held.server, lookup(query, 'u_plain'))).toBeNull();
    expect(await askOnce(held.server, lookup(query, "x' OR true --"))).toBeNull();
    await expect(askOnce(held.server, lookup(query, 'u_md5'), 'u_plain')).rejects.toThrow(/SQLSTATE 42501/);
  });

  it('is probed by anyone', async () => {
    const all = await Promise.all([look(held.server), look(held.server, 'u_monitor'), look(held.server, 'u_plain')]);
    for (const facts of all) {
      expect(facts).toMatchObject({
        role: 'primary',
        writable: true,
        timeline: 1,
        lagBytes: null,
        system: all[0].system,
      });
      expect(facts.position).toBeGreaterThan(0n);
      expect(historyOf(facts)).toMatchObject({ timelines: [], nextXid: expect.stringMatching(/^\d+$/) });
    }
    // One life, told with more or less certainty.
    expect(all[1].instance).toBe(all[0].instance);
    expect(all[2].instance.split('.')[0]).toBe(all[0].instance.split('.')[0]);
    expect(await look(held.server, 'u_plain')).toMatchObject({ instance: all[2].instance });
  });

  it('is not writable when its default is read only', async () => {
    await held.server.query("ALTER ROLE u_monitor SET default_transaction_read_only = 'on'");
    expect(await look(held.server, 'u_monitor')).toMatchObject({ role: 'primary', writable: false });
  });

  // ------------------------------------------------------------------------------------------------------- outcomes

  let nextId = 1;
  async function begin(server: EmbeddedServer): Promise<{ client: EmbeddedClient; token: OutcomeToken; id: number }> {
    const id = nextId++;
    const client = await server.connect();
    await client.query('BEGIN');
    await client.query(`INSERT INTO work VALUES (${id})`);
    return { client, token: await tokenOf(client), id };
  }

  it('tells outcomes while it lives', async () => {
    const { server } = held;
    const facts = await look(server);
    const ask = async (token: OutcomeToken) => askOnce(server, resolve(token, facts, await look(server)));

    const done = await begin(server);
    await done.client.query('COMMIT');
    expect(await ask(done.token)).toBe('committed');

    const undone = await begin(server);
    expect(await ask(undone.token)).toBe('wait');
    await undone.client.query('ROLLBACK');
    expect(await ask(undone.token)).toBe('not-committed');

    expect(await ask({ token: { xid: '99999999', lsn: '0/1' }, position: 1n })).toBe('unknown');
    for (const { client } of [done, undone]) await client.end();
  });

  it('tells prepared transactions', async () => {
    const { server } = held;
    await server.setConf('max_prepared_transactions', '4');
    await server.restart();
    const facts = await look(server);
    const prepared = await begin(server);
    await prepared.client.query("PREPARE TRANSACTION 'p'");
    await prepared.client.end();
    expect(await askOnce(server, resolve(prepared.token, facts, facts))).toBe('committed');
    await server.restart('immediate');
    expect(await askOnce(server, resolve(prepared.token, facts, await look(server)))).toBe('committed');
    await server.query("ROLLBACK PREPARED 'p'");
    expect(await askOnce(server, resolve(prepared.token, facts, await look(server)))).toBe('not-committed');
  });

  it('tells outcomes across a clean restart', async () => {
    const { server } = held;
    const before = await look(server);
    const done = await begin(server);
    await done.client.query('COMMIT');
    await done.client.end();
    const undone = await begin(server);
    await server.restart();
    await undone.client.end().catch(() => {});
    const after = await look(server);
    expect(after.instance).not.toBe(before.instance);
    expect(parseLsn(historyOf(after).endOfRecoveryLsn!)).toBeGreaterThan(done.token.position);
    expect(await askOnce(server, resolve(done.token, before, after))).toBe('committed');
    expect(await askOnce(server, resolve(undone.token, before, after))).toBe('not-committed');
    // Once a checkpoint has replaced the one of the start, the first look still tells.
    await server.query('SELECT pg_current_xact_id()');
    await server.query('CHECKPOINT');
    expect(historyOf(await look(server)).endOfRecoveryLsn).toBeNull();
    expect(await askOnce(server, resolve(done.token, before, after))).toBe('committed');
    expect(await askOnce(server, resolve(done.token, before, await look(server)))).toBe('unknown');
  });

  it('notices that all of it but the postmaster started anew, and tells outcomes across that', async () => {
    const { server } = held;
    const before = await look(server);
    const unprivileged = await look(server, 'u_plain');
    const done = await begin(server);
    await done.client.query('COMMIT');
    const [{ pid }] = (await done.client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')).rows;
    process.kill(pid, 'SIGKILL');
    await done.client.end().catch(() => {});
    const after = await eventually(async () => {
      const facts = await look(server);
      if (facts.instance === before.instance) throw new Error('the crash is not noticed');
      return facts;
    });
    expect(after.instance.split('.')[0]).toBe(before.instance.split('.')[0]);
    expect(parseLsn(historyOf(after).endOfRecoveryLsn!)).toBeGreaterThan(done.token.position);
    expect(await askOnce(server, resolve(done.token, before, after))).toBe('committed');
    expect((await look(server, 'u_plain')).instance).not.toBe(unprivileged.instance);
    expect(await askOnce(server, resolve(done.token, unprivileged, after), 'u_plain')).toBe('committed');
  });

  it('is not fooled by ids that a crash made free', async () => {
    const { server } = held;
    // Nothing is written but by who must: a commit that does not wait stays in memory, and so does its id.
    await server.setConf('wal_writer_delay', '10000');
    await server.setConf('bgwriter_delay', '10000');
    await server.restart();
    const before = await look(server);
    const kept = await begin(server);
    await kept.client.query('COMMIT');
    await kept.client.end();
    await sleep(50);
    const lost = await begin(server);
    await lost.client.query('SET LOCAL synchronous_commit = off');
    await lost.client.query('COMMIT');
    await server.kill();
    await lost.client.end().catch(() => {});
    await server.start();
    const after = await look(server);
    await issue(server, lost.token);

    const there = await server.query<{ id: number }>('SELECT id FROM work WHERE id IN ($1, $2)', [kept.id, lost.id]);
    const ids = there.rows.map(({ id }) => id);
    expect(ids).toContain(kept.id);
    expect(await askOnce(server, resolve(kept.token, before, after))).toBe('committed');
    expect(await askOnce(server, resolve(lost.token, before, after))).toBe(
      ids.includes(lost.id) ? 'committed' : 'not-committed',
    );
  });
});

/** The token of the open transaction. */
async function tokenOf(client: EmbeddedClient): Promise<OutcomeToken> {
  const { rows } = await client.query<{ xid: string; lsn: string }>(
    'SELECT pg_current_xact_id_if_assigned()::text AS xid, pg_current_wal_insert_lsn()::text AS lsn',
  );
  return { token: rows[0], position: parseLsn(rows[0].lsn) };
}

/** Commits transactions until the id of the token was issued (again). */
async function issue(server: EmbeddedServer, token: OutcomeToken): Promise<void> {
  const wanted = BigInt((token.token as { xid: string }).xid);
  await eventually(async () => {
    const { rows } = await server.query<{ xid: string }>('SELECT pg_current_xact_id()::text AS xid');
    return BigInt(rows[0].xid) >= wanted;
  });
}

// ------------------------------------------------------------------------------------------------------------ promotion

describe('a promotion', () => {
  const held = usePair({ synchronous: false });

  it('leaves no doubt about what was committed', async () => {
    const { pair } = held;
    await restorePair(pair);
    await pair.primary.query('CREATE TABLE work (id int PRIMARY KEY)');
    await pair.primary.query('CREATE ROLE u_plain LOGIN');
    const origin = await look(pair.primary);
    const start = async (id: number): Promise<{ client: EmbeddedClient; token: OutcomeToken }> => {
      const client = await pair.primary.connect();
      await client.query('BEGIN');
      await client.query(`INSERT INTO work VALUES (${id})`);
      return { client, token: await tokenOf(client) };
    };
    const transact = async (id: number, end: 'COMMIT' | 'ROLLBACK'): Promise<OutcomeToken> => {
      const { client, token } = await start(id);
      await client.query(end);
      await client.end();
      return token;
    };

    const shipped = await transact(1, 'COMMIT');
    const undone = await transact(2, 'ROLLBACK');
    const running = await start(3);
    // A commit flushes what the rollback and the open transaction have left in memory; unshipped, their ids would be free.
    await transact(7, 'COMMIT');
    const flushed = await pair.primary.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
    await eventually(async () => {
      const facts = await look(pair.standby);
      expect(facts).toMatchObject({ role: 'standby', writable: false, system: origin.system, timeline: 1 });
      return facts.position >= parseLsn(flushed.rows[0].lsn);
    });
    const standby = await look(pair.standby);
    expect(await askOnce(pair.standby, resolve(shipped, origin, standby))).toBe('unknown');

    await pair.pauseReplication();
    const unshipped = await transact(4, 'COMMIT');
    const higher = await transact(5, 'COMMIT');
    await pair.failover();
    await running.client.end().catch(() => {});
    const survivor = pair.primary;
    const first = await look(survivor);
    expect(first).toMatchObject({ role: 'primary', writable: true, system: origin.system, timeline: 2 });
    expect(historyOf(first).timelines).toMatchObject([{ timeline: 1 }]);
    const ask = (token: OutcomeToken, from: ServerFacts = origin, user?: string) =>
      askOnce(survivor, resolve(token, from, first), user);

    // Not issued again yet.
    expect(await ask(unshipped)).toBe('not-committed');
    await issue(survivor, unshipped);
    const aliases = await survivor.query<{ status: string }>('SELECT pg_xact_status($1::text::xid8) AS status', [
      (unshipped.token as { xid: string }).xid,
    ]);
    expect(aliases.rows[0].status).toBe('committed');

    expect(await ask(shipped)).toBe('committed');
    expect(await ask(undone)).toBe('not-committed');
    expect(await ask(running.token)).toBe('not-committed');
    expect(await ask(unshipped)).toBe('not-committed');
    expect(await ask(higher)).toBe('not-committed');
    const kept = await survivor.query<{ id: number }>('SELECT id FROM work ORDER BY id');
    expect(kept.rows).toEqual([{ id: 1 }, { id: 7 }]);

    // Without the right to read the switch point: honest about what cannot be told, exact about the rest.
    expect(await ask(undone, origin, 'u_plain')).toBe('not-committed');
    const blind = { ...first, history: { ...historyOf(first), timelines: null } };
    expect(await askOnce(survivor, resolve(shipped, origin, blind), 'u_plain')).toBe('unknown');
    await survivor.query('GRANT EXECUTE ON FUNCTION pg_read_file(text) TO u_plain');
    expect(await askOnce(survivor, resolve(shipped, origin, blind), 'u_plain')).toBe('committed');

    // A token of the survivor's own, with facts from before it was promoted.
    const own = await transact(6, 'COMMIT');
    expect(await ask(own, standby)).toBe('committed');
    // And across a crash of the survivor, tokens of both timelines.
    await survivor.kill();
    await survivor.start();
    const second = await look(survivor);
    expect(await askOnce(survivor, resolve(own, first, second))).toBe('committed');
    expect(await askOnce(survivor, resolve(shipped, origin, second))).toBe('committed');
    expect(await askOnce(survivor, resolve(unshipped, origin, second))).toBe('not-committed');
  });
});
