import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { LoadSession, type LoginOptions } from '../load/session.js';
import type { Program, Scope } from '../scope.js';

/** What stands, or does not stand, between the clients and the server. */
export const PEERS = ['direct', 'outlive', 'bare', 'pgbouncer', 'haproxy'] as const;

export type PeerName = (typeof PEERS)[number];

/** Those that are measured unless others are wanted. */
export const USUAL_PEERS: readonly PeerName[] = PEERS.filter((name) => name !== 'bare');

/** Address of a server. */
export interface ServerAddress {
  readonly host: string;
  readonly port: number;
}

/** What a peer is to be started for. */
export interface PeerOptions {
  /** The servers; peers other than Outlive know only the first. */
  readonly servers: readonly ServerAddress[];
  /** The user and database that clients log in to; the server trusts them. */
  readonly user: string;
  readonly database: string;
  /** Sessions at a time that must fit. */
  readonly sessions: number;
}

/** A peer that runs. */
export interface Peer {
  readonly name: PeerName;
  readonly version: string;
  readonly host: string;
  readonly port: number;
  /** Its processes; more may descend from them. None for the direct way. */
  readonly pids: readonly number[];
  stop(): Promise<void>;
}

/** Starts a peer; undefined when it is not installed here. */
export type StartPeer = (scope: Scope, options: PeerOptions) => Promise<Peer | undefined>;

/** No peer at all: clients log in to the server. */
export const startDirect: StartPeer = async (_scope, { servers }) => ({
  name: 'direct',
  version: '',
  ...servers[0],
  pids: [],
  stop: async () => {},
});

/** The first line that a program prints about its version. */
export function versionOf(program: string, flag: string): Promise<string> {
  return new Promise((resolve) => {
    execFile(program, [flag], (_error, stdout, stderr) => {
      resolve((stdout || stderr).split('\n', 1)[0].trim());
    });
  });
}

/** Waits until a login through a started program works. */
export async function untilServing(name: string, program: Program, login: LoginOptions): Promise<void> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    if (!program.running) throw new Error(`${name} ended while it was starting:\n${program.tail}`);
    try {
      const session = await LoadSession.open(login);
      session.end();
      return;
    } catch (error) {
      if (Date.now() > deadline) {
        throw new Error(`${name} does not take logins (${(error as Error).message}):\n${program.tail}`);
      }
      await sleep(50);
    }
  }
}
