import { createServer, type Server, type Socket } from 'node:net';
import { message } from './gateway.js';

/**
 * A thing that speaks PostgreSQL's login, opens a transaction at BEGIN and ends it at COMMIT, and answers every other request
 * with nothing: thousands of its connections cost nothing.
 */
export interface FakePostgres {
  readonly port: number;
  /** Connections that are logged in now. */
  readonly sessions: number;
  stop(): Promise<void>;
}

const PARAMETERS = {
  server_version: '18.0',
  server_encoding: 'UTF8',
  client_encoding: 'UTF8',
  application_name: '',
  default_transaction_read_only: 'off',
  in_hot_standby: 'off',
  is_superuser: 'on',
  session_authorization: 'postgres',
  DateStyle: 'ISO, MDY',
  IntervalStyle: 'postgres',
  TimeZone: 'UTC',
  integer_datetimes: 'on',
  standard_conforming_strings: 'on',
  search_path: '"$user", public',
  scram_iterations: '4096',
};

const READY = message('Z', 'I');
const DONE = Buffer.concat([message('C', 'SELECT 0\0'), READY]);
const DONE_INSIDE = Buffer.concat([message('C', 'SELECT 0\0'), message('Z', 'T')]);
const CANCEL_REQUEST = 80877102;

function greeting(id: number): Buffer {
  const key = Buffer.alloc(8);
  key.writeInt32BE(id, 0);
  key.writeInt32BE(id ^ 0x5a5a5a5a, 4);
  const parameters = Object.entries(PARAMETERS).map(([name, value]) => message('S', `${name}\0${value}\0`));
  return Buffer.concat([message('R', Buffer.alloc(4)), ...parameters, message('K', key), READY]);
}

/** Starts one on a free port. */
export async function startFakePostgres(): Promise<FakePostgres> {
  const sockets = new Set<Socket>();
  let sessions = 0;
  const server: Server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket);
    let left: Buffer = Buffer.alloc(0);
    let greeted = false;
    let inside = false;
    socket.on('data', (chunk) => {
      left = left.length === 0 ? chunk : Buffer.concat([left, chunk]);
      for (;;) {
        const at = greeted ? 1 : 0;
        if (left.length < at + 4) return;
        const length = at + left.readInt32BE(at);
        if (left.length < length) return;
        const frame = left.subarray(0, length);
        left = left.subarray(length);
        if (!greeted) {
          if (frame.readInt32BE(4) === CANCEL_REQUEST) {
            socket.end();
            return;
          }
          greeted = true;
          sessions++;
          socket.write(greeting(sessions));
        } else if (frame[0] === 0x58) {
          socket.end();
          return;
        } else if (frame[0] === 0x51 || frame[0] === 0x46) {
          const verb = frame.toString('latin1', 5, 11);
          inside = verb === 'BEGIN\0' || (inside && verb !== 'COMMIT');
          socket.write(inside ? DONE_INSIDE : DONE);
        } else if (frame[0] === 0x53) socket.write(READY);
      }
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      sockets.delete(socket);
      if (greeted) sessions--;
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', 1024, resolve));
  return {
    port: (server.address() as { port: number }).port,
    get sessions() {
      return sessions;
    },
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}
