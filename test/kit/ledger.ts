import { Client } from 'pg';
import type { Log } from '../../core/contract/index.js';
import { pgDriver } from '../../core/host/demo/drivers/pg.js';
import { configureDemo } from '../../core/host/demo/index.js';
import { createLedger } from '../../core/host/demo/ledger.js';
import { accountsFor, type Kind, Workload } from '../../core/host/demo/workload.js';
import { type Gateway, startGateway } from '../../core/host/gateway.js';
import type { EmbeddedPair } from '../../plugins/embedded-postgres/index.js';

/** Numbers in [0, 1) that a seed repeats. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** A log that says nothing but what `OUTLIVE_DEBUG` asks for. */
export function quietLog(): Log {
  const say = (level: string) => (fields: Record<string, unknown>, message: string) => {
    if (process.env.OUTLIVE_DEBUG) console.log(new Date().toISOString(), level, message, JSON.stringify(fields));
  };
  return { debug: say('debug'), info: say('info'), warn: say('warn'), error: say('error') };
}

/** Clients that move money. */
export interface Traffic {
  readonly workload: Workload;
  /** Null when the clients are connected to the primary itself. */
  readonly gateway: Gateway | null;
  /** Lets the clients finish and ends the gateway. */
  stop(): Promise<void>;
}

/** Makes a fresh ledger on the primary and lets clients work on it through a gateway, or on the primary itself. */
export async function startTraffic(
  pair: EmbeddedPair,
  options: {
    clients: number;
    random: () => number;
    kinds: Partial<Record<Kind, number>>;
    think: { inside: number; between: number };
    direct?: boolean;
    patience?: number;
  },
): Promise<Traffic> {
  const { clients, direct = false, patience = 45_000, ...rest } = options;
  await createLedger((sql) => pair.primary.query(sql), accountsFor(clients));
  const gateway = direct ? null : await startGateway(configureDemo(pair, clients), { log: quietLog() });
  const port = gateway?.listeners[0].port ?? pair.primary.port;
  const connection = { host: '127.0.0.1', port, user: 'postgres', database: 'postgres', ssl: false };
  const workload = new Workload({ driver: pgDriver(Client, connection), clients, patience, ...rest });
  const stop = async () => {
    await workload.stop(patience);
    await gateway?.stop();
  };
  try {
    await workload.start();
  } catch (error) {
    await gateway?.stop();
    throw error;
  }
  return { workload, gateway, stop };
}
