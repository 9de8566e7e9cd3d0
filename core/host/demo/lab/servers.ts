import type { Host } from './lab.js';

type Embedded = typeof import('../../../../plugins/embedded-postgres/index.js');

/** An embedded pair on hosts of a lab. */
export type LabPair = Awaited<ReturnType<Embedded['startPair']>>;

/**
 * Starts a PostgreSQL primary on one host and its standby on another, both on port 5432 of their hosts. All methods of the pair work from this
 * process, over unix sockets, whatever becomes of the network between; hosts of the lab are trusted. After {@link Host.crash} of a server's
 * host, `failover()` promotes the other one; after {@link Host.reboot}, `rebuild()` brings it back.
 *
 * @param hosts of the first primary and of the first standby
 */
export async function startPairIn(
  hosts: readonly [Host, Host],
  options: Omit<NonNullable<Parameters<Embedded['startPair']>[0]>, 'places' | 'ports'> = {},
): Promise<LabPair> {
  // Loaded only here: the gateway itself needs no servers of its own.
  const { startPair } = await import('../../../../plugins/embedded-postgres/index.js');
  const places = hosts.map((host) => ({
    addresses: [host.address, ...(host.address6 === null ? [] : [host.address6])],
    trusted: host.lab.networks,
    command: (user: { readonly uid: number; readonly gid: number } | undefined) => host.command(user),
  }));
  return await startPair({ ...options, places });
}

/**
 * The plain part of a gateway's configuration in front of a pair: one listener `demo` without authentication, one cluster `pair`. Other sections
 * are added to it by the caller.
 *
 * @param listen address and port of the listener
 * @param clients as many may connect, and so many sessions wait ready on the standby
 */
export function configInFront(pair: LabPair, listen: string, clients: number) {
  return {
    listeners: [
      {
        name: 'demo',
        codec: 'postgres',
        listen,
        cluster: 'pair',
        auth: 'trust',
        limits: { clients: clients + 10, greetings: Math.max(200, clients) },
      },
    ],
    clusters: [
      {
        name: 'pair',
        servers: [pair.primary, pair.standby].map(({ name, host, port }) => ({ name, host, port, tls: 'off' })),
        monitor: { user: 'postgres', database: 'postgres', interval: '100ms', timeout: '1s' },
        spares: { perIdentity: clients, total: clients },
      },
    ],
  };
}
