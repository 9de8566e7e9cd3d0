/** The bench: `npm run bench -- relay | failover | idle | pair | takeover | decode`. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { decode } from './decode.js';
import { failover } from './failover.js';
import { idle } from './idle.js';
import { LOADS, type LoadChoice } from './load/run.js';
import { WORKLOADS, type WorkloadName } from './load/workloads.js';
import { pair } from './pair.js';
import { PEERS, type PeerName, USUAL_PEERS } from './peers/peer.js';
import { relay } from './relay.js';
import { relayTds } from './relay-tds.js';
import { allPass, type Figure } from './report.js';
import { takeover } from './takeover.js';

function whole(least: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < least) throw new InvalidArgumentError(`a whole number from ${least} up`);
    return value;
  };
}

function wholes(text: string): number[] {
  return text.split(',').map(whole(1));
}

function someOf<T extends string>(all: readonly T[]) {
  return (text: string): T[] =>
    text.split(',').map((word) => {
      const found = all.find((each) => each === word);
      if (found === undefined) throw new InvalidArgumentError(`choose from ${all.join(', ')}`);
      return found;
    });
}

/** What all scenarios know. */
interface Common {
  readonly json?: boolean;
  readonly assert?: boolean;
}

function settle(figures: readonly Figure[], { assert = false }: Common): void {
  if (assert && !allPass(figures)) process.exitCode = 1;
}

const program = new Command('bench').description('Measures Outlive beside its peers, all in one run.');

function scenario(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option('--json', 'one JSON object on the last line')
    .option('--assert', 'exit with 1 when a figure misses its limit or none was measured');
}

scenario('relay', 'throughput, latency and CPU of relaying, side by side')
  .option('--clients <list>', 'clients at a time', wholes, [1, 16, 64])
  .option('--seconds <n>', 'measured time of each cell', whole(1), 5)
  .option('--rounds <n>', 'rounds', whole(1), 3)
  .option('--workloads <list>', WORKLOADS.join(', '), someOf(WORKLOADS), [...WORKLOADS])
  .option('--peers <list>', PEERS.join(', '), someOf(PEERS), [...USUAL_PEERS])
  .option('--scale <n>', 'branches of 100,000 accounts', whole(1), 16)
  .addOption(new Option('--load <generator>', 'who makes the load').choices([...LOADS]).default('auto'))
  .addOption(
    new Option('--codec <name>', 'tds: SQL Server beside PostgreSQL').choices(['postgres', 'tds']).default('postgres'),
  )
  .option('--awake', 'keep cores from being halted between requests (SCHED_IDLE)')
  .action(
    async (
      options: Common & {
        clients: number[];
        seconds: number;
        rounds: number;
        workloads: WorkloadName[];
        peers: PeerName[];
        scale: number;
        load: LoadChoice;
        codec: 'postgres' | 'tds';
        awake?: boolean;
      },
    ) => {
      const run = options.codec === 'tds' ? relayTds : relay;
      const { json = false, awake = false } = options;
      settle(await run({ ...options, json, awake }), options);
    },
  );

scenario('failover', 'how long clients with an open transaction wait after a promotion')
  .option('--clients <n>', 'clients with an open transaction', whole(1), 200)
  .option('--statements <n>', 'statements of each transaction before the failover', whole(1), 5)
  .option('--spares <n>', 'warm spares where there are some (default: as many as clients)', whole(0))
  .option('--rounds <n>', 'rounds', whole(1), 3)
  .option('--without-outlive', 'only clients that help themselves')
  .action(
    async (
      options: Common & {
        clients: number;
        statements: number;
        spares?: number;
        rounds: number;
        withoutOutlive?: boolean;
      },
    ) => {
      const { spares = options.clients, withoutOutlive = false, json = false } = options;
      settle(await failover({ ...options, spares, outlive: !withoutOutlive, json }), options);
    },
  );

scenario('idle', 'memory of idle sessions')
  .option('--sessions <n>', 'idle sessions', whole(1), 2000)
  .option('--peers <list>', PEERS.join(', '), someOf(PEERS), [...USUAL_PEERS])
  .action(async (options: Common & { sessions: number; peers: PeerName[] }) =>
    settle(await idle({ ...options, json: options.json ?? false }), options),
  );

scenario('pair', 'what it costs that a second gateway follows, and that answers wait for it')
  .option('--clients <list>', 'clients at a time', wholes, [16, 64])
  .option('--seconds <n>', 'measured time of each cell', whole(1), 5)
  .option('--rounds <n>', 'rounds', whole(1), 3)
  .option('--workloads <list>', WORKLOADS.join(', '), someOf(WORKLOADS), ['select-prepared', 'tpcb'])
  .option('--scale <n>', 'branches of 100,000 accounts', whole(1), 16)
  .addOption(new Option('--load <generator>', 'who makes the load').choices([...LOADS]).default('auto'))
  .action(
    async (
      options: Common & {
        clients: number[];
        seconds: number;
        rounds: number;
        workloads: WorkloadName[];
        scale: number;
        load: LoadChoice;
      },
    ) => settle(await pair({ ...options, json: options.json ?? false }), options),
  );

scenario('takeover', 'how long a host with many connections takes to be taken over, and what a connection costs')
  .option('--connections <list>', 'connections at a time', wholes, [10, 100, 1000, 10_000])
  .action(async (options: Common & { connections: number[] }) =>
    settle(await takeover({ ...options, json: options.json ?? false }), options),
  );

scenario('decode', 'how fast the bytes of a server are understood, beside a driver that decodes them')
  .addOption(new Option('--codec <name>', 'whose bytes').choices(['tds']).default('tds'))
  .option('--megabytes <n>', 'bytes of each measurement', whole(1), 200)
  .option('--rounds <n>', 'rounds', whole(1), 5)
  .action(async (options: Common & { codec: 'tds'; megabytes: number; rounds: number }) =>
    settle(await decode({ ...options, json: options.json ?? false }), options),
  );

try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`bench: ${(error as Error).message}\n`);
  process.exitCode = 1;
}
