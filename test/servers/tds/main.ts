/**
 * A TDS server as a process of its own, so that a test can kill it. Its options come as JSON in the first argument; its parent
 * speaks with it over the channel that child_process.fork makes.
 */
import type { Gate, Place, TdsEvent, TdsOptions } from './server.js';
import { TdsServer } from './server.js';

/** What the parent asks for. */
export type Ask =
  | { readonly ask: 'hold'; readonly id: number; readonly place: Place; readonly autocommit: boolean }
  | { readonly ask: 'release'; readonly id: number }
  | { readonly ask: 'drop'; readonly spid: number };

/** What it hears. */
export type Told =
  | { readonly tell: 'listening'; readonly port: number }
  | { readonly tell: 'reached'; readonly id: number; readonly spid: number }
  | { readonly tell: 'event'; readonly event: TdsEvent };

function tell(told: Told): void {
  // Numbers of 64 bits have no place in JSON.
  if (process.connected)
    process.send?.(JSON.parse(JSON.stringify(told, (_, value) => (typeof value === 'bigint' ? String(value) : value))));
}

const server = await TdsServer.start(JSON.parse(process.argv[2]) as TdsOptions);
server.onEvent((event) => tell({ tell: 'event', event }));
const gates = new Map<number, Gate>();

process.on('message', (message: Ask) => {
  if (message.ask === 'hold') {
    const gate = server.hold(message.place, { autocommit: message.autocommit });
    gates.set(message.id, gate);
    void gate.reached.then((spid) => tell({ tell: 'reached', id: message.id, spid }));
  } else if (message.ask === 'release') {
    gates.get(message.id)?.release();
    gates.delete(message.id);
  } else server.drop(message.spid);
});
// Nobody is left who could want it.
process.on('disconnect', () => process.exit(0));
tell({ tell: 'listening', port: server.port });
