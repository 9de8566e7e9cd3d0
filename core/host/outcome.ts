import { randomBytes } from 'node:crypto';
import { type Codec, CodedError, type Log } from '../contract/index.js';
import type { ProofKind, ProofPolicy } from '../session/proof.js';
import type { Cluster } from './cluster/index.js';
import type { ListenerConfig } from './config/index.js';

/** How the commits of a listener are proved, with what its codec can do and what it calls its table. */
export function outcomeOf(
  { outcome }: ListenerConfig,
  codec: Codec,
): { readonly by: ProofKind; readonly table: string } {
  const by = outcome.by ?? (codec.capabilities.outcome ? 'position' : 'none');
  return { by, table: by === 'marker' ? (outcome.table ?? codec.markers?.defaultTable ?? '') : '' };
}

/** The same for one of its sessions, on this database. */
export function proofOf(listener: ListenerConfig, codec: Codec, database: string): ProofPolicy {
  const { by, table } = outcomeOf(listener, codec);
  const seed = by === 'marker' ? randomBytes(16) : new Uint8Array(0);
  return { by, autocommit: listener.outcome.autocommit, table, database, seed };
}

/** Old rows are looked for so often while a row is kept. */
const SWEEPS = 12;

/** Removes old rows of marks from the databases in which sessions of a listener left any since the gateway runs. */
export class MarkSweeper {
  #timer: NodeJS.Timeout | undefined;
  readonly #databases = new Set<string>();

  constructor(
    private readonly listener: ListenerConfig,
    private readonly codec: Codec,
    private readonly cluster: Pick<Cluster, 'askIn'>,
    private readonly log: Log,
  ) {}

  start(): void {
    if (outcomeOf(this.listener, this.codec).by !== 'marker') return;
    this.#timer = setInterval(() => void this.sweep(), this.listener.outcome.retain / SWEEPS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** There are rows in this database, or will be. */
  note(database: string): void {
    this.#databases.add(database);
  }

  /** Removes what is old now. Never rejects: what could not be removed is tried again the next time. */
  async sweep(): Promise<void> {
    const { retain } = this.listener.outcome;
    const { table } = outcomeOf(this.listener, this.codec);
    for (const database of this.#databases) {
      const fields = { listener: this.listener.name, database, table };
      try {
        const count = await this.cluster.askIn(database, this.codec.markers!.remove(table, retain));
        if (count > 0) this.log.debug({ ...fields, count }, 'old rows that proved commits were removed');
      } catch (error) {
        const code = error instanceof CodedError ? error.code : 'OUTLIVE_INTERNAL';
        this.log.warn({ ...fields, code }, 'old rows that proved commits could not be removed; the next try follows');
      }
    }
  }
}
