import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { CredentialsPlugin, PluginContext, Secret, ServerFacts } from '../../core/contract/index.js';
import { AcknowledgedCommits } from '../../core/host/cluster/commits.js';
import { Learned } from '../../core/host/cluster/learned.js';
import { FIRST, LAST, Turns } from '../../core/host/cluster/logins.js';
import credentialsQuery from '../../plugins/credentials-query/index.js';

const never = new AbortController().signal;
const token = (position: bigint) => ({ token: null, position });
const settle = () => new Promise((resolve) => setImmediate(resolve));

describe('the login queue', () => {
  const jobs = (turns: Turns) => {
    const order: string[] = [];
    const open = new Map<string, () => void>();
    const add = (name: string, ticket: number, signal = never, urgent?: () => boolean) => {
      const job = () => {
        order.push(name);
        return new Promise<void>((resolve) => open.set(name, resolve));
      };
      return turns.run(ticket, signal, job, urgent);
    };
    const end = async (name: string) => {
      open.get(name)!();
      await settle();
    };
    return { order, add, end };
  };

  it('runs so many at once, first come first served', async () => {
    const turns = new Turns(2);
    const { order, add, end } = jobs(turns);
    for (const [i, name] of ['a', 'b', 'c', 'd'].entries()) void add(name, i + 1);
    await settle();
    expect(order).toEqual(['a', 'b']);
    expect([turns.running, turns.waiting]).toEqual([2, 2]);
    await end('b');
    expect(order).toEqual(['a', 'b', 'c']);
    await end('a');
    await end('c');
    await end('d');
    expect([turns.running, turns.waiting]).toEqual([0, 0]);
  });

  it('keeps the order of tickets, the own logins first and spares last', async () => {
    const turns = new Turns(1);
    const { order, add, end } = jobs(turns);
    void add('running', 1);
    void add('spare', LAST);
    void add('late', 9);
    void add('back again', 2);
    void add('own', FIRST);
    await settle();
    for (const name of ['running', 'own', 'back again', 'late', 'spare']) await end(name);
    expect(order).toEqual(['running', 'own', 'back again', 'late', 'spare']);
  });

  it('prefers what is urgent when a job may begin, but not to the own logins', async () => {
    const turns = new Turns(1);
    const { order, add, end } = jobs(turns);
    let urgent = false;
    void add('running', 1);
    void add('idle', 2);
    void add('late', 3, never, () => urgent);
    void add('urgent', 4, never, () => true);
    void add('own', FIRST);
    await settle();
    for (const name of ['running', 'own']) await end(name);
    urgent = true;
    for (const name of ['urgent', 'late', 'idle']) await end(name);
    expect(order).toEqual(['running', 'own', 'urgent', 'late', 'idle']);
  });

  it('lets go of who is aborted, waiting or not, and of who fails', async () => {
    const turns = new Turns(1);
    const { order, add, end } = jobs(turns);
    void add('a', 1);
    const quit = new AbortController();
    const waiting = add('b', 2, quit.signal);
    void add('c', 3);
    await settle();
    quit.abort(new Error('gone'));
    await expect(waiting).rejects.toThrow('gone');
    await expect(add('d', 4, quit.signal)).rejects.toThrow('gone');
    await end('a');
    expect(order).toEqual(['a', 'c']);
    await end('c');
    await expect(turns.run(5, never, () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect([turns.running, turns.waiting]).toEqual([0, 0]);
  });
});

describe('acknowledged commits', () => {
  const at = (timeline: number, system = 's') => ({ system, timeline }) as ServerFacts;

  it('tells which are beyond a switch point, once', () => {
    const commits = new AcknowledgedCommits();
    expect(commits.part(0n)).toBeNull();
    const more = (...positions: bigint[]) => positions.map((position) => commits.note(at(1), token(position)));
    expect(more(10n, 30n, 20n)).toEqual(['noted', 'noted', 'noted']);
    expect(commits.timeline).toBe(1);
    expect(commits.part(15n)).toEqual({ count: 2, unclear: [token(10n)], atLeast: false, position: 30n });
    expect(commits.part(15n)).toBeNull();
    // What is reported late is known for lost or not at once.
    expect(more(14n, 15n)).toEqual(['unclear', 'lost']);
  });

  it('finds nothing missing for certain before the switch point', () => {
    const commits = new AcknowledgedCommits();
    commits.note(at(1), token(30n));
    expect(commits.part(31n)).toEqual({ count: 0, unclear: [token(30n)], atLeast: false, position: 30n });
  });

  it('remembers the latest ones of the latest timeline', () => {
    const commits = new AcknowledgedCommits();
    for (let i = 0; i < 5000; i++) commits.note(at(1), token(BigInt(i)));
    expect(commits.part(10n)).toEqual({ count: 4096, unclear: [], atLeast: true, position: 4999n });
    commits.note(at(2), token(6000n));
    expect(commits.note(at(1), token(9000n))).toBe('noted');
    expect(commits.timeline).toBe(2);
    expect(commits.part(0n)).toEqual({ count: 1, unclear: [], atLeast: false, position: 6000n });
  });
});

describe('learnt facts', () => {
  it('are learnt once for all who ask, and renewed behind the scenes', async () => {
    let now = 0;
    let value = 0;
    const learnt = new Learned(() => now);
    const learn = async () => ++value;
    expect(learnt.peek('d')).toBeUndefined();
    expect(await Promise.all([learnt.get('d', learn), learnt.get('d', learn)])).toEqual([1, 1]);
    now = 59_999;
    expect(await learnt.get('d', learn)).toBe(1);
    now = 60_000;
    expect(await learnt.get('d', learn)).toBe(1);
    await settle();
    expect(learnt.peek('d')).toBe(2);
    expect(await learnt.get('other', learn)).toBe(3);
  });

  it('of another gateway count while nothing else is known, and are old', async () => {
    const learnt = new Learned(() => 0);
    learnt.give('d', undefined);
    learnt.give('d', 'theirs');
    learnt.give('d', 'later');
    expect(learnt.peek('d')).toBe('theirs');
    expect(await learnt.get('d', async () => 'own')).toBe('theirs');
    await settle();
    learnt.give('d', 'theirs');
    expect(learnt.peek('d')).toBe('own');
  });

  it('are not taken from before a change', async () => {
    const learnt = new Learned(() => 0);
    const pending: ((value: string) => void)[] = [];
    const learn = () => new Promise<unknown>((resolve) => pending.push(resolve));
    const before = learnt.get('d', learn);
    const after = [learnt.refresh('d', learn), learnt.refresh('d', learn)];
    pending.shift()!('old');
    expect(await before).toBe('old');
    await settle();
    expect(pending.length).toBe(1);
    pending.shift()!('new');
    expect(await Promise.all(after)).toEqual(['new', 'new']);
    expect(learnt.peek('d')).toBe('new');
  });

  it('stay when learning fails, and it is not tried again at once', async () => {
    let now = 0;
    let tries = 0;
    const learnt = new Learned(() => now);
    const fail = async () => {
      tries++;
      throw new Error('no');
    };
    await expect(learnt.get('d', fail)).rejects.toThrow('no');
    expect(await learnt.get('d', fail)).toBeUndefined();
    expect(tries).toBe(1);
    now = 1000;
    expect(await learnt.get('d', async () => 'yes')).toBe('yes');
    now = 70_000;
    expect(await learnt.get('d', fail)).toBe('yes');
    await settle();
    expect(await learnt.get('d', fail)).toBe('yes');
    expect(tries).toBe(2);
  });
});

describe('the credentials-query plugin', () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
  afterEach(() => void vi.useRealTimers());

  const asked: string[] = [];
  const create = (options: unknown, lookup?: PluginContext['lookup']) =>
    credentialsQuery.create(options, { lookup } as PluginContext) as Promise<CredentialsPlugin>;

  it('keeps answers for a short time, "no such user" for a shorter one', async () => {
    asked.splice(0);
    let secret: Secret | null = { password: 'x' };
    const plugin = await create({ query: 'Q' }, async (query, user) => {
      asked.push(`${query} ${user}`);
      return user === 'nobody' ? null : secret;
    });
    expect(await Promise.all([plugin.lookup('u', 'd'), plugin.lookup('u', 'e')])).toEqual([secret, secret]);
    expect(await plugin.lookup('nobody', 'd')).toBeNull();
    expect(asked).toEqual(['Q u', 'Q nobody']);
    vi.advanceTimersByTime(1000);
    secret = { password: 'y' };
    expect(await plugin.lookup('u', 'd')).toEqual({ password: 'x' });
    await plugin.lookup('nobody', 'd');
    expect(asked.length).toBe(3);
    vi.advanceTimersByTime(9000);
    expect(await plugin.lookup('u', 'd')).toEqual({ password: 'y' });
  });

  it('keeps no failure, and refuses what it does not know', async () => {
    let fails = true;
    const plugin = await create(undefined, async (query) => {
      expect(query).toContain('pg_shadow');
      if (fails) throw new Error('down');
      return null;
    });
    await expect(plugin.lookup('u', 'd')).rejects.toThrow('down');
    fails = false;
    expect(await plugin.lookup('u', 'd')).toBeNull();
    await expect(create({ sql: 'Q' })).rejects.toMatchObject({ code: 'OUTLIVE_CONFIG_CREDENTIALS' });
    await expect((await create({})).lookup('u', 'd')).rejects.toMatchObject({ code: 'OUTLIVE_CONFIG_CREDENTIALS' });
  });
});
