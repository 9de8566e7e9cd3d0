import { z } from 'zod';
import { CodedError } from '../contract/index.js';

/** The conditions under which something moves, each with its own switch; what they mean is told at `ConditionsConfig`. */
export const CONDITIONS = [
  'hostFailed',
  'processFailed',
  'dbmsFailed',
  'dbmsReadOnly',
  'unreachableBackends',
  'operator',
  'balance',
] as const;
export type Condition = (typeof CONDITIONS)[number];

/** How a gateway finds a database server: it takes writes as far as one can tell, does not answer, or refuses writes. */
export type BackendReach = 'ok' | 'unreachable' | 'read-only';

/** What a gateway knows of one address of the pair. */
export interface AddressStatistics {
  /** The highest epoch that it knows of; the one it serves under when it serves. */
  readonly epoch: number;
  /** It holds the address; true from the moment when it begins to take it until it has let go of it. */
  readonly serves: boolean;
  /** What held it, this process or the one before, is gone or about to go, and the next one on the same host goes on with its connections. */
  readonly resumes: boolean;
  /** Client sessions on this address; 0 when it does not serve. */
  readonly sessions: number;
  /** Requests of these sessions, smoothed over some seconds. */
  readonly requestsPerSecond: number;
}

/** How busy a gateway is. */
export interface Load {
  /** CPU time of the process per time and core: 1 means that the event loop never rests. */
  readonly cpu: number;
  /** How late timers fire, 99th percentile since the beat before, in ms. */
  readonly eventLoopDelayMs: number;
  /** Client sessions, all listeners together. */
  readonly sessions: number;
  /** To and from clients. */
  readonly bytesPerSecond: number;
  readonly requestsPerSecond: number;
}

/** What gateways tell each other on every beat: plain data, fit for JSON. */
export interface Statistics {
  /** Name of the gateway in the configuration. */
  readonly name: string;
  /** Version of the program. */
  readonly version: string;
  /** Random, another one after each start of the process. */
  readonly incarnation: string;
  /** When it was made, in ms on the sender's own clock that never goes back; means nothing on another host. */
  readonly sentAt: number;
  /** By address of the pair. */
  readonly addresses: Readonly<Record<string, AddressStatistics>>;
  /** Clients that are served now. */
  readonly clients: number;
  /** Sessions of the gateway that is told this that are followed here, and how many of these are complete enough to be adopted. */
  readonly shadows: { readonly total: number; readonly adoptable: number };
  /** The gateways whose sessions are followed here, and by which choice of theirs: a later one has a greater number. */
  readonly follows: Readonly<Record<string, number>>;
  readonly reaches: {
    /** The gateway that is told this was heard lately. */
    readonly peer: boolean;
    /** By `cluster/server`. */
    readonly backends: Readonly<Record<string, BackendReach>>;
    /** The lease store; null when none is configured. */
    readonly store: boolean | null;
  };
  readonly load: Load;
  /** It is going down, or was told to give everything away: it takes nothing more. */
  readonly draining: boolean;
  /** The conditions that are switched on. */
  readonly conditions: readonly Condition[];
}

/** More than any real pair has; keeps what a broken peer can make this gateway hold small. */
const MOST_ADDRESSES = 256;
const MOST_BACKENDS = 1024;
const MOST_MEMBERS = 256;

// Names end up in logs and on terminals: no control characters, nothing invisible.
const name = z.string().regex(/^[^\p{C}\p{Zl}\p{Zp}]{1,255}$/u, 'must be 1 to 255 visible characters');
const count = z.int().min(0);
const amount = z.number().min(0);

function table<T extends z.ZodType>(value: T, most: number) {
  return z
    .record(name, value)
    .refine((entries) => Object.keys(entries).length <= most, { error: `has more than ${most} entries` });
}

const SHAPE = z.strictObject({
  name,
  version: name,
  incarnation: name,
  sentAt: amount,
  addresses: table(
    z.strictObject({
      epoch: count,
      serves: z.boolean(),
      resumes: z.boolean(),
      sessions: count,
      requestsPerSecond: amount,
    }),
    MOST_ADDRESSES,
  ),
  clients: count,
  shadows: z
    .strictObject({ total: count, adoptable: count })
    .refine(({ total, adoptable }) => adoptable <= total, { error: 'more are adoptable than there are' }),
  follows: table(count, MOST_MEMBERS),
  reaches: z.strictObject({
    peer: z.boolean(),
    backends: table(z.enum(['ok', 'unreachable', 'read-only']), MOST_BACKENDS),
    store: z.boolean().nullable(),
  }),
  load: z.strictObject({
    cpu: amount,
    eventLoopDelayMs: amount,
    sessions: count,
    bytesPerSecond: amount,
    requestsPerSecond: amount,
  }),
  draining: z.boolean(),
  conditions: z.array(z.enum(CONDITIONS)).max(CONDITIONS.length),
});

/**
 * Checks what came from the peer.
 *
 * @param input the parsed JSON of a beat
 * @returns the statistics, without anything that is not part of them
 * @throws CodedError `OUTLIVE_PAIR_PROTOCOL` that names the first places that are wrong, never what stands there
 */
export function parseStatistics(input: unknown): Statistics {
  const parsed = SHAPE.safeParse(input);
  if (parsed.success) return parsed.data;
  // Paths hold keys of the peer's choice: quoted and cut, so that a log stays readable.
  const faults = parsed.error.issues.slice(0, 3).map(({ path, code }) => {
    const place = JSON.stringify(path.map(String).join('.').slice(0, 100));
    return `${place} (${code})`;
  });
  const more = parsed.error.issues.length > 3 ? ', ...' : '';
  throw new CodedError(
    'OUTLIVE_PAIR_PROTOCOL',
    'network',
    `The other gateway's statistics are malformed at ${faults.join(', ')}${more}. Run the same version of Outlive on both.`,
  );
}

/** The clusters of which at least one server answers this gateway. */
export function reachedClusters(statistics: Statistics): Set<string> {
  const reached = new Set<string>();
  for (const [backend, reach] of Object.entries(statistics.reaches.backends)) {
    if (reach !== 'unreachable') reached.add(backend.slice(0, Math.max(0, backend.lastIndexOf('/'))));
  }
  return reached;
}

/** What a gateway says of an address; null when it says nothing of it. */
export function addressOf(statistics: Statistics, address: string): AddressStatistics | null {
  return Object.hasOwn(statistics.addresses, address) ? statistics.addresses[address] : null;
}
