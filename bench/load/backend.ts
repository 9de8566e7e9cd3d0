/**
 * Script: a stand-in for a PostgreSQL server, of which thousands of connections cost nothing. It lets everybody in, answers `SELECT 123` with
 * that number, and every other request with nothing. Arguments: address and port to listen on. Prints a line when it does.
 */
import { createServer } from 'node:net';
import { message } from './frames.js';

const CANCEL_REQUEST = 80877102;

const READY = message('Z', Buffer.from('I'));
const EMPTY = Buffer.concat([message('C', 'SELECT 0'), READY]);
const PARAMETERS = {
  server_version: '18.0',
  server_encoding: 'UTF8',
  client_encoding: 'UTF8',
  in_hot_standby: 'off',
  default_transaction_read_only: 'off',
  integer_datetimes: 'on',
  standard_conforming_strings: 'on',
};

function int16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeInt16BE(value);
  return bytes;
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

function greeting(id: number): Buffer {
  const parameters = Object.entries(PARAMETERS).map(([name, value]) => message('S', name, value));
  return Buffer.concat([message('R', int32(0)), ...parameters, message('K', int32(id), int32(~id)), READY]);
}

/** One row with one column of type int4 (oid 23), as text. */
function row(text: string): Buffer {
  const column = ['n', int32(0), int16(0), int32(23), int16(4), int32(-1), int16(0)];
  const value = Buffer.from(text);
  return Buffer.concat([
    message('T', int16(1), ...column),
    message('D', int16(1), int32(value.length), value),
    message('C', 'SELECT 1'),
    READY,
  ]);
}

const [host, port] = process.argv.slice(2);
let serial = 0;

createServer({ noDelay: true }, (socket) => {
  let left: Buffer = Buffer.alloc(0);
  let greeted = false;
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    left = left.length === 0 ? chunk : Buffer.concat([left, chunk]);
    for (;;) {
      // The first message of a connection has no type.
      const at = greeted ? 1 : 0;
      if (left.length < at + 4) return;
      const length = at + left.readInt32BE(at);
      if (left.length < length) return;
      const frame = left.subarray(0, length);
      left = left.subarray(length);
      const type = String.fromCharCode(frame[0]);
      if (!greeted) {
        if (frame.readInt32BE(4) === CANCEL_REQUEST) socket.end();
        else socket.write(greeting(++serial));
        greeted = true;
      } else if (type === 'X') socket.end();
      else if (type === 'Q') {
        const number = /^SELECT (\d+)\0$/.exec(frame.toString('latin1', 5))?.[1];
        socket.write(number === undefined ? EMPTY : row(number));
      } else if (type === 'S') socket.write(READY);
    }
  });
}).listen({ host, port: Number(port), backlog: 1024 }, () => process.stdout.write('listening\n'));
