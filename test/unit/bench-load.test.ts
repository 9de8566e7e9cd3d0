import { createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { errorFields, executeFrames, FrameReader, firstColumn, queryFrame } from '../../bench/load/frames.js';
import { runLoad } from '../../bench/load/generator.js';
import { LoadSession } from '../../bench/load/session.js';
import { Units, unitStatements } from '../../bench/load/units.js';
import { Script, tableStatements, WORKLOADS, workloadOf } from '../../bench/load/workloads.js';

function frame(type: string, body: Buffer | string = ''): Buffer {
  const bytes = Buffer.from(body);
  const header = Buffer.alloc(5);
  header.write(type);
  header.writeInt32BE(bytes.length + 4, 1);
  return Buffer.concat([header, bytes]);
}

const READY = frame('Z', 'I');
const LOGIN = Buffer.concat([frame('R', Buffer.alloc(4)), frame('S', 'a\0b\0'), frame('K', Buffer.alloc(8)), READY]);
const ERROR = frame('E', 'SERROR\0C40001\0Mtry again\0\0');

function row(text: string): Buffer {
  const body = Buffer.alloc(6 + text.length);
  body.writeInt16BE(1);
  body.writeInt32BE(text.length, 2);
  body.write(text, 6);
  return frame('D', body);
}

/** A message from a client: its type, '' for the startup, and its body. */
interface Received {
  readonly type: string;
  readonly body: Buffer;
}

/** Says what to answer to a message; `count` numbers the messages of one connection. */
type Answering = (message: Received, count: number, socket: Socket) => Buffer | undefined;

const servers: Server[] = [];

/** A server that answers as it is told, byte by byte when `torn`. */
async function scripted(answering: Answering, torn = false) {
  const received: Received[] = [];
  const server = createServer((socket) => {
    let rest = Buffer.alloc(0);
    let count = 0;
    socket.setNoDelay(true);
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      rest = Buffer.concat([rest, chunk]);
      for (;;) {
        const start = count === 0 ? 0 : 1;
        if (rest.length < start + 4) return;
        const size = rest.readInt32BE(start);
        if (rest.length < start + size) return;
        const message = { type: rest.toString('latin1', 0, start), body: rest.subarray(start + 4, start + size) };
        rest = rest.subarray(start + size);
        received.push(message);
        const answer = answering(message, count++, socket);
        if (answer === undefined) continue;
        if (torn) for (const byte of answer) socket.write(Buffer.from([byte]));
        else socket.write(answer);
      }
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  return { login: { host: '127.0.0.1', port, user: 'u', database: 'd' }, received };
}

afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => new Promise((resolve) => server.close(resolve))));
});

const SELECTED = Buffer.concat([frame('T', 'whatever'), row('7'), frame('C', 'SELECT 1\0'), READY]);

const ordinary: Answering = ({ type }, count) => {
  if (count === 0) return LOGIN;
  if (type === 'S') return Buffer.concat([frame('2'), SELECTED]);
  return type === 'Q' ? SELECTED : undefined;
};

describe('FrameReader', () => {
  const stream = Buffer.concat([LOGIN, frame('D', 'Z'.repeat(300)), ERROR, frame('1'), READY, frame('n'), READY]);

  it.each([1, 2, 3, 4, 5, 6, 7, 64, 1000])('finds the same frames in pieces of %i bytes', (size) => {
    const found: string[] = [];
    const reader = new FrameReader([0x5a, 0x45], (type, bytes, start, end) => {
      found.push(String.fromCharCode(type) + bytes.toString('latin1', start, end));
    });
    for (let at = 0; at < stream.length; at += size) {
      const piece = Buffer.from(stream.subarray(at, at + size));
      reader.push(piece, piece.length);
      // The caller reads the next piece into the same place.
      piece.fill(0);
    }
    expect(found).toEqual(['ZI', 'ESERROR\0C40001\0Mtry again\0\0', 'ZI', 'ZI']);
  });

  it('reads only as far as it is told', () => {
    let count = 0;
    const reader = new FrameReader([0x5a], () => count++);
    reader.push(Buffer.concat([READY, READY]), READY.length);
    expect(count).toBe(1);
  });
});

describe('frames', () => {
  it('are as the protocol says', () => {
    expect(queryFrame('SELECT 1').toString('latin1')).toBe('Q\0\0\0\rSELECT 1\0');
    expect(executeFrames('s', ['12']).toString('latin1')).toBe(
      'B\0\0\0\x13\0s\0\0\0\0\x01\0\0\0\x0212\0\0' + 'D\0\0\0\x06P\0' + 'E\0\0\0\t\0\0\0\0\0' + 'S\0\0\0\x04',
    );
  });

  it('are read', () => {
    const fields = errorFields(ERROR, 5, ERROR.length);
    expect([...fields]).toEqual(Object.entries({ S: 'ERROR', C: '40001', M: 'try again' }));
    const bytes = row('hello');
    expect(firstColumn(bytes, 5, bytes.length)).toBe('hello');
    expect(firstColumn(Buffer.from([0, 0]), 0, 2)).toBeNull();
    expect(firstColumn(Buffer.from([0, 1, 255, 255, 255, 255]), 0, 6)).toBeNull();
  });
});

describe('Script', () => {
  it('writes new values over the old ones', () => {
    const script = new Script(workloadOf('select-simple'), 3);
    script.draw(() => 0);
    expect(script.request(0).toString('latin1')).toContain('WHERE aid =  0000000001\0');
    script.draw(() => 0.999_999_999);
    expect(script.request(0).toString('latin1')).toContain('WHERE aid =  0000300000\0');
  });

  it('prepares each statement once and binds the values in their order', () => {
    const script = new Script(workloadOf('tpcb'), 2);
    expect(script.length).toBe(7);
    expect(script.setup).toHaveLength(7);
    expect(script.setup[5].toString('latin1')).toContain('VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)');
    expect(script.setup[1].toString('latin1')).toContain('abalance + $1 WHERE aid = $2');
    script.draw(() => 0.25);
    const bytes = script.request(1).toString('latin1');
    expect(bytes).toContain('\0\0\0\x0a-000002500\0\0\0\x0a0000050001');
    expect(script.request(0).toString('latin1')).not.toContain('@');
  });

  it.each(WORKLOADS)('leaves no placeholder in %s', (name) => {
    const script = new Script(workloadOf(name), 1);
    script.draw();
    for (let index = 0; index < script.length; index++) expect(script.request(index).includes('@')).toBe(false);
  });

  it('fills tables that fit the values', () => {
    expect(tableStatements(3).join('\n')).toContain('generate_series(1, 300000)');
    expect(tableStatements(3).join('\n')).toContain('generate_series(1, 30)');
  });
});

describe('LoadSession', () => {
  it('hands on values, errors and what comes torn apart', async () => {
    const answers = [SELECTED, Buffer.concat([ERROR, READY]), READY];
    const { login } = await scripted((_, count) => (count === 0 ? LOGIN : answers[count - 1]), true);
    const session = await LoadSession.open(login);
    expect(await session.run(queryFrame('a'))).toEqual({ value: '7', refusal: undefined });
    expect((await session.run(queryFrame('b'))).refusal).toEqual({ code: '40001', message: 'try again' });
    expect(await session.run(queryFrame('c'))).toEqual({ value: undefined, refusal: undefined });
    session.end();
    expect(session.open).toBe(false);
  });

  it('says why a login failed', async () => {
    const refused = await scripted((_message, _count, socket) => {
      socket.end(frame('E', 'SFATAL\0C53300\0Mtoo many\0\0'));
      return undefined;
    });
    await expect(LoadSession.open(refused.login)).rejects.toThrow('53300 too many');
    const asking = await scripted(() => frame('R', Buffer.from([0, 0, 0, 3])));
    await expect(LoadSession.open(asking.login)).rejects.toThrow('asks for a password');
    const port = refused.login.port;
    await new Promise((resolve) => servers[0].close(resolve));
    servers.shift();
    await expect(LoadSession.open({ ...refused.login, port })).rejects.toThrow('ECONNREFUSED');
  });

  it('tells of a lost connection once', async () => {
    const { login } = await scripted(({ type }, count, socket) => {
      if (type === 'Q') socket.destroy();
      return count === 0 ? LOGIN : undefined;
    });
    const session = await LoadSession.open(login);
    const lost: string[] = [];
    session.onLost = (_, { code }) => lost.push(code);
    await expect(session.run(queryFrame('a'))).rejects.toThrow('lost');
    await expect(session.run(queryFrame('b'))).rejects.toThrow();
    expect(lost).toEqual(['lost']);
  });
});

describe('runLoad', () => {
  const times = { warmupMs: 20, measureMs: 150, scale: 1 };

  it.each(WORKLOADS)('runs %s in closed loops', async (workload) => {
    const { login, received } = await scripted(ordinary);
    const events: string[] = [];
    const result = await runLoad(
      { ...login, ...times, clients: 3, workload },
      { onMeasure: () => events.push('measure'), onMeasured: () => void events.push('measured') },
    );
    expect(events).toEqual(['measure', 'measured']);
    expect(result.errors).toBe(0);
    expect(result.transactions).toBeGreaterThan(10);
    expect(result.tps).toBeLessThanOrEqual(result.transactions / 0.149);
    expect(result.tps).toBeGreaterThan(0);
    expect(result.p50).toBeGreaterThan(0);
    expect(result.p99).toBeGreaterThanOrEqual(result.p50);
    expect(result.max).toBeGreaterThanOrEqual(result.p99);
    const { mode, statements } = workloadOf(workload);
    const count = (type: string) => received.filter((each) => each.type === type).length;
    expect(count('P')).toBe(mode === 'prepared' ? 3 * statements.length : 0);
    expect(count('B')).toBe(mode === 'prepared' ? count('E') : 0);
    // Whole transactions only, and a polite end.
    expect(count(mode === 'prepared' ? 'B' : 'Q') % statements.length).toBe(0);
    await expect.poll(() => count('X')).toBe(3);
  });

  it('counts transactions with errors apart and goes on', async () => {
    let queries = 0;
    const { login } = await scripted((message, count, socket) =>
      message.type === 'Q' && queries++ % 2 === 0 ? Buffer.concat([ERROR, READY]) : ordinary(message, count, socket),
    );
    const result = await runLoad({ ...login, ...times, clients: 1, workload: 'select-simple' });
    expect(result.errors).toBeGreaterThan(5);
    expect(Math.abs(result.errors - result.transactions)).toBeLessThanOrEqual(1);
    expect(result.firstError).toBe('40001 try again');
  });

  it('keeps the load up until the measuring is done', async () => {
    const { login, received } = await scripted(ordinary);
    let during = 0;
    const onMeasured = async () => {
      const before = received.length;
      await new Promise((resolve) => setTimeout(resolve, 60));
      during = received.length - before;
    };
    await runLoad({ ...login, ...times, clients: 1, workload: 'select-simple' }, { onMeasured });
    expect(during).toBeGreaterThan(5);
  });

  it('fails when a session is lost or cannot prepare', async () => {
    let queries = 0;
    const dying = await scripted((message, count, socket) => {
      if (message.type === 'Q' && ++queries === 20) socket.destroy();
      return ordinary(message, count, socket);
    });
    await expect(runLoad({ ...dying.login, ...times, clients: 2, workload: 'select-simple' })).rejects.toThrow(
      'a session was lost',
    );
    const refusing = await scripted(({ type }, count) => {
      if (count === 0) return LOGIN;
      return type === 'S' ? Buffer.concat([ERROR, READY]) : undefined;
    });
    await expect(runLoad({ ...refusing.login, ...times, clients: 1, workload: 'tpcb' })).rejects.toThrow(
      'preparing failed: 40001',
    );
  });
});

describe('Units', () => {
  const options = { clients: 4, statements: 5, timeoutMs: 200, manner: 'gateway' as const };

  it('knows its counter after any number of statements', () => {
    for (let count = 1; count <= 12; count++) {
      const { statements, counter } = unitStatements(3, count);
      expect(statements).toHaveLength(count);
      expect(statements.filter((sql) => sql.startsWith('UPDATE')).length + 1).toBe(counter);
    }
  });

  it('tells right answers from wrong ones, errors and silence', async () => {
    const { login } = await scripted(({ body }, count) => {
      if (count === 0) return LOGIN;
      const sql = body.toString();
      if (!sql.includes('RETURNING')) return READY;
      const id = Number(/id = (\d+)/.exec(sql)?.[1]);
      if (id === 0) return Buffer.concat([row('4'), READY]);
      if (id === 1) return Buffer.concat([row('1'), READY]);
      return id === 2 ? Buffer.concat([ERROR, READY]) : undefined;
    });
    const units = new Units({ ...login, ...options });
    await units.open();
    units.send(0);
    units.send(1);
    const outcomes = await units.finish();
    expect(outcomes.map(({ error }) => error)).toEqual([
      ...[undefined, 'wrong answer: 1 in place of 4', '40001 try again', 'no answer within 200 ms'],
    ]);
    expect(outcomes[0].answeredAt).toBeGreaterThan(0);
    expect(outcomes[3].answeredAt).toBeUndefined();
  });

  it('connects again and repeats everything where that is the manner', async () => {
    const old = await scripted(({ body }, count, socket) => {
      if (body.includes('RETURNING')) socket.destroy();
      return count === 0 ? LOGIN : READY;
    });
    const next = await scripted(({ body }, count) => {
      if (count === 0) return LOGIN;
      return body.includes('RETURNING') ? Buffer.concat([row('4'), READY]) : READY;
    });
    const units = new Units({ ...old.login, ...options, timeoutMs: 5000, manner: 'reconnect' });
    await units.open();
    units.send(0);
    units.send(1);
    units.promoted(next.login);
    expect((await units.finish()).map(({ error }) => error)).toEqual([undefined, undefined, undefined, undefined]);
    const statements = next.received.filter(({ type }) => type === 'Q');
    // BEGIN, five statements, the next one and COMMIT, for each of four.
    expect(statements).toHaveLength(4 * 8);
  });

  it('repeats everything at once on sessions that it has opened beforehand, where that is the manner', async () => {
    const old = await scripted(({ body }, count, socket) => {
      if (body.includes('RETURNING')) socket.destroy();
      return count === 0 ? LOGIN : READY;
    });
    const next = await scripted(({ body }, count) => {
      if (count === 0) return LOGIN;
      return body.includes('RETURNING') ? Buffer.concat([row('1'), row('4'), READY]) : READY;
    });
    const manner = { timeoutMs: 5000, manner: 'own spares', standby: next.login } as const;
    const units = new Units({ ...old.login, ...options, ...manner });
    await units.open();
    expect(next.received.filter(({ type }) => type === 'Q')).toEqual([]);
    units.send(0);
    units.send(1);
    units.promoted(next.login);
    expect((await units.finish()).map(({ error }) => error)).toEqual([undefined, undefined, undefined, undefined]);
    // All of it in one, and COMMIT, for each of four.
    expect(next.received.filter(({ type }) => type === 'Q')).toHaveLength(4 * 2);
  });
});
