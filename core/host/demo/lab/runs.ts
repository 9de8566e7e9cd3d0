import type { PacketKind, PacketSource } from './packets.js';

/** An unbroken row of packets with one source address from one host. */
export interface Run {
  readonly source: string;
  /** Name of the host at whose port they came in, or whose card sent them. */
  readonly host: string;
  /** When the first and the last one was seen; milliseconds since the epoch, with a fraction. */
  readonly first: number;
  readonly last: number;
  readonly packets: number;
  readonly kinds: Readonly<Partial<Record<PacketKind, number>>>;
}

/** What a recorder has seen. Runs are in the order of their beginnings. */
export interface Recording {
  /** As the hosts sent them, also those that a cut or a loss then dropped. */
  readonly sent: readonly Run[];
  /** As they left the bridge for some host; a broadcast counts once for each. */
  readonly delivered: readonly Run[];
  /** Packets that the recorder was too slow for. Anything but 0 means that nothing is proved. */
  readonly missed: number;
}

interface OpenRun extends Run {
  last: number;
  packets: number;
  readonly kinds: Partial<Record<PacketKind, number>>;
}

/** Gathers packets into {@link Run}s: a source's run ends when another host speaks for it. */
export class Runs {
  readonly list: OpenRun[] = [];
  readonly #open = new Map<string, OpenRun>();

  /** @param at milliseconds since the epoch */
  add(host: string, { source, kind }: PacketSource, at: number): void {
    let run = this.#open.get(source);
    if (run?.host !== host) {
      run = { source, host, first: at, last: at, packets: 0, kinds: {} };
      this.#open.set(source, run);
      this.list.push(run);
    }
    run.last = at;
    run.packets++;
    run.kinds[kind] = (run.kinds[kind] ?? 0) + 1;
  }
}

/** The hosts that spoke for a source one after the other. `['a', 'b']` is one takeover; `['a', 'b', 'a']` two, or two owners at once. */
export function ownersOf(runs: readonly Run[], source: string): string[] {
  return runs.filter((run) => run.source === source).map(({ host }) => host);
}
