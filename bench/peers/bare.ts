import { fileURLToPath } from 'node:url';
import { connect } from '../../core/io/connect.js';
import { listen } from '../../core/io/listen.js';
import type { Wire } from '../../core/io/wire.js';
import { freePorts } from '../../plugins/embedded-postgres/index.js';
import { Program } from '../scope.js';
import { type ServerAddress, type StartPeer, untilServing } from './peer.js';

/** Passes on what comes from one wire to the other, and waits when the other cannot keep up. */
function pass(from: Wire, to: Wire): void {
  from.onData = (chunk) => {
    if (!to.write(chunk)) from.pause();
  };
  to.onDrain = () => from.resume();
  from.onClose = () => to.end();
  from.resume();
}

/**
 * A relay over the gateway's own wires that looks at nothing: what is left of a gateway in Node when everything is taken from it that it is for.
 * @param port 0 for a free one
 * @returns the port on 127.0.0.1
 */
export async function passBytes({ host, port: target }: ServerAddress, port: number): Promise<number> {
  const listener = await listen({
    host: '127.0.0.1',
    port,
    onWire: (client) => {
      connect({ host, port: target, timeoutMs: 5000 }).then(
        (server) => {
          pass(client, server);
          pass(server, client);
        },
        () => client.reset(),
      );
    },
  });
  return listener.port;
}

/** Starts {@link passBytes} in a process of its own. */
export const startBare: StartPeer = async (scope, options) => {
  const [server] = options.servers;
  const [port] = await freePorts(1);
  const script = fileURLToPath(new URL('./bare-main.js', import.meta.url));
  const program = new Program(process.execPath, [script, String(port), server.host, String(server.port)]);
  scope.defer(() => program.stop());
  const address = { host: '127.0.0.1', port };
  await untilServing('the bare relay', program, { ...address, user: options.user, database: options.database });
  return {
    name: 'bare',
    version: `nothing but reads and writes on Node ${process.version}`,
    ...address,
    pids: [program.child.pid ?? -1],
    stop: () => program.stop(),
  };
};
