import { setTimeout as sleep } from 'node:timers/promises';
import { LoadChild } from './load/channel.js';
import { PEERS, type Peer, type PeerName } from './peers/peer.js';
import { residentBytes } from './proc.js';
import { peerLines, startPeer } from './relay.js';
import { cell, type Figure, machine, machineLines, print, progress, table } from './report.js';
import { withScope } from './scope.js';
import { BENCH_USER, serverSettings, startBenchServer } from './server.js';

/** Options of the idle scenario. */
export interface IdleOptions {
  readonly sessions: number;
  readonly peers: readonly PeerName[];
  readonly json: boolean;
}

/** Memory of one peer, in KiB. */
export interface IdleResult {
  readonly peer: PeerName;
  readonly sessions: number;
  readonly beforeKiB: number | undefined;
  readonly afterKiB: number | undefined;
  readonly perSessionKiB: number | undefined;
}

/** A peer has settled when its memory has kept still for this many looks. */
const STILL_LOOKS = 6;
const LOOK_MS = 500;
const MOST_LOOKS = 60;

/**
 * Waits until memory has stopped moving: garbage collectors and allocators give back what they do not need only after
 * a while of rest, and not at all when asked from outside.
 */
export async function settledKiB(pids: readonly number[]): Promise<number | undefined> {
  let last = residentBytes(pids);
  for (let still = 0, looks = 0; last !== undefined && still < STILL_LOOKS && looks < MOST_LOOKS; looks++) {
    await sleep(LOOK_MS);
    const next = residentBytes(pids) ?? last;
    still = Math.abs(next - last) <= last * 0.002 ? still + 1 : 0;
    last = next;
  }
  return last === undefined ? undefined : last / 1024;
}

/** The acceptance figure P3. */
export function idleFigures(results: readonly IdleResult[]): Figure[] {
  const value = results.find(({ peer }) => peer === 'outlive')?.perSessionKiB;
  return [{ id: 'P3', what: 'memory of an idle session', value, rule: 'at most', limit: 40, unit: 'KiB' }];
}

/** Runs the idle scenario and prints what it found. */
export async function idle(options: IdleOptions): Promise<Figure[]> {
  return await withScope(async (scope) => {
    const on = machine();
    const { sessions } = options;
    // Peers may keep a few server connections of their own, and the one before may still be letting go of its own.
    const server = await startBenchServer(scope, { settings: serverSettings(sessions * 2 + 50) });
    const login = { user: BENCH_USER, database: BENCH_USER };
    const found: Peer[] = [];
    const missing: PeerName[] = [];
    const results: IdleResult[] = [];
    for (const name of PEERS) {
      // Without a proxy there is nothing whose memory could be asked for.
      if (name === 'direct' || !options.peers.includes(name)) continue;
      const servers = [{ host: server.host, port: server.port }];
      const peer = await startPeer(scope, name, { servers, ...login, sessions });
      if (peer === undefined) {
        missing.push(name);
        continue;
      }
      found.push(peer);
      const child = new LoadChild(scope);
      const { host, port, pids } = peer;
      // The first session pays for what is loaded once.
      child.send({ order: 'idle', login: { host, port, ...login }, sessions: 1 });
      await child.next('open');
      const beforeKiB = await settledKiB(pids);
      progress(`${name}: opening ${sessions} sessions`);
      child.send({ order: 'idle', login: { host, port, ...login }, sessions });
      await child.next('open');
      const afterKiB = await settledKiB(pids);
      await child.stop();
      await peer.stop();
      const perSessionKiB =
        beforeKiB === undefined || afterKiB === undefined ? undefined : (afterKiB - beforeKiB) / sessions;
      results.push({ peer: name, sessions, beforeKiB, afterKiB, perSessionKiB });
    }
    const rows = results.map((each) => [
      each.peer,
      String(each.sessions),
      cell(each.beforeKiB),
      cell(each.afterKiB),
      cell(each.perSessionKiB),
    ]);
    const lines = [
      ...machineLines(on),
      `PostgreSQL ${server.version}; each session has run one statement and has a server connection`,
      ...peerLines(found, missing),
      '',
      table(['through', 'sessions', 'RSS before KiB', 'RSS after KiB', 'KiB a session'], rows, 1),
    ];
    const figures = idleFigures(results);
    print(lines, figures, options.json ? { scenario: 'idle', machine: on, results, missing } : undefined);
    return figures;
  });
}
