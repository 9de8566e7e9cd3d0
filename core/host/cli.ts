import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { CodedError, type Log } from '../contract/index.js';
import { askAdmin, type Order } from './admin.js';
import { describeConfig, type Gap, renderReport, tryPlugins, VERSION } from './check.js';
import { tryAbilities } from './check-pair.js';
import { type Config, ConfigError, loadConfig, parseDuration } from './config/index.js';
import { createLog } from './log.js';
import { type Extensions, loadExtensions } from './registry.js';
import { statusText } from './status-text.js';

/** A gateway that runs. */
export interface RunningGateway {
  readonly listeners: readonly { readonly name: string; readonly port: number }[];
  stop(): Promise<void>;
}

/** The parts that commands load only when they need them. */
export interface Parts {
  gateway(): Promise<{
    startGateway(
      config: Config,
      options: { log: Log; keeper?: string; onRetired?: () => void },
    ): Promise<RunningGateway>;
  }>;
  keeper(): Promise<{
    runKeeper(options: { socketPath: string; command: readonly string[]; log: Log }): Promise<number>;
    requestUpgrade(path: string): Promise<void>;
  }>;
  demo(): Promise<{ runDemo(options: DemoOptions): Promise<boolean> }>;
}

/** Options of the demo. */
export interface DemoOptions {
  /** Failovers to go through; with `pair`, how often all four faults come. */
  readonly rounds: number;
  readonly clients: number;
  /** What the clients speak. */
  readonly codec: 'postgres' | 'tds';
  /** Two gateways, of which hosts and processes are lost as well. */
  readonly pair: boolean;
  /** One JSON object at the end instead of a story. */
  readonly json: boolean;
  /** Writes a text to the standard output. */
  readonly out: (text: string) => void;
}

/** The demo's options as they are written. */
interface DemoFlags {
  readonly rounds?: number;
  readonly clients: number;
  readonly codec: 'postgres' | 'tds';
  readonly pair?: boolean;
  readonly json?: boolean;
}

/** The options of check as they are written. */
interface CheckFlags {
  readonly config: string;
  readonly json?: boolean;
  readonly online?: boolean;
  readonly database?: readonly string[];
}

/** The options of setup as they are written. */
interface SetupFlags {
  readonly config: string;
  readonly listener: string;
  readonly database?: readonly string[];
  readonly user?: string;
  readonly dryRun?: boolean;
  readonly removeOlderThan?: number;
}

/** The outside of the command line. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Columns of the terminal. */
  readonly columns: number;
  /** Resolves with the name of the signal when the process is told to stop. */
  stopped(): Promise<string>;
  /** Program and arguments that start this program. */
  readonly self: readonly string[];
  /** Ends the process at once, with success. */
  end(): void;
}

/** How long a running gateway may take to do what it was told. */
const ADMIN_MS = 30_000;

/** Exit codes: all is well; it failed while running; the usage or the configuration is wrong. */
export const EXIT = { ok: 0, failed: 1, usage: 2 } as const;

/** Runs a command line and resolves with its exit code. Errors are printed, never thrown. */
export async function main(argv: readonly string[], io: Io, parts: Parts): Promise<number> {
  let code: number = EXIT.ok;
  const program = new Command('outlive')
    .description('A gateway that lets database sessions outlive the servers behind them.')
    .version(VERSION)
    .showHelpAfterError('Try --help.')
    .exitOverride()
    .configureOutput({
      writeOut: (text) => io.out(text),
      writeErr: (text) => io.err(text),
      outputError: (text, write) => write(text.replace(/^error: /, 'error OUTLIVE_USAGE: ')),
    });

  program
    .command('run')
    .description('run the gateway until SIGTERM or SIGINT')
    .requiredOption('-c, --config <file>', 'the configuration (YAML)')
    .action(async ({ config }: { config: string }) => {
      await run(await loadConfig(config, io.env), io, parts);
    });

  program
    .command('check')
    .description('check a configuration and say what it would run, and what it would not protect')
    .requiredOption('-c, --config <file>', 'the configuration (YAML)')
    .option('--json', 'as JSON')
    .option('--online', 'also ask the servers whether the tables of outcome: { by: marker } are set up')
    .option('--database <name>', "databases to ask in (default: the monitor's)", gathered)
    .action(async ({ config, json = false, online = false, database = [] }: CheckFlags) => {
      code = await check(config, json, online ? database : null, io);
    });

  program
    .command('setup')
    .description(
      'make the table of rows that prove the commits of a listener (outcome: { by: marker }), on the server that takes writes',
    )
    .requiredOption('-c, --config <file>', 'the configuration (YAML)')
    .requiredOption('--listener <name>', 'the listener')
    .option('--database <name>', "databases that its clients use (default: the monitor's)", gathered)
    .option('--user <name>', "who does it, with the password in OUTLIVE_SETUP_PASSWORD (default: the monitor's user)")
    .option('--dry-run', 'only say what would be run')
    .option('--remove-older-than <age>', 'also remove rows that are older, such as 2h', age)
    .action(async (flags: SetupFlags) => {
      const config = await loadConfig(flags.config, io.env);
      const { runSetup } = await import('./setup.js');
      const as =
        flags.user === undefined ? null : { user: flags.user, password: io.env.OUTLIVE_SETUP_PASSWORD ?? null };
      const { listener, database: databases = [], dryRun = false, removeOlderThan = null } = flags;
      const options = { listener, databases, as, dryRun, removeOlderThan };
      const done = await runSetup(config, await loadExtensions(config), options, (line) => io.out(`${line}\n`));
      if (!done) code = EXIT.failed;
    });

  program
    .command('keeper')
    .description('run the gateway under a keeper of its sockets: clients stay when it crashes or is upgraded')
    .requiredOption('-c, --config <file>', 'the configuration (YAML)')
    .action(async ({ config }: { config: string }) => {
      const { keeper, log } = await loadConfig(config, io.env);
      const { runKeeper } = await parts.keeper();
      const command = [...io.self, 'run', '--config', config];
      code = await runKeeper({ socketPath: keeper.socket, command, log: createLog(log) });
    });

  program
    .command('upgrade')
    .description('replace the engine under a keeper by one of the program as it is installed now')
    .requiredOption('-c, --config <file>', 'the configuration (YAML) that it runs with')
    .action(async ({ config }: { config: string }) => {
      const { keeper } = await loadConfig(config, io.env);
      const { requestUpgrade } = await parts.keeper();
      await requestUpgrade(keeper.socket);
      io.out('the new engine serves\n');
    });

  program
    .command('status')
    .description('say how a running gateway and its pair are')
    .requiredOption('-c, --config <file>', 'the configuration (YAML) that it runs with')
    .option('--json', 'as JSON')
    .action(async ({ config, json = false }: { config: string; json?: boolean }) => {
      const status = await ask(config, 'status', io);
      io.out(json ? `${JSON.stringify(status, null, 2)}\n` : statusText(status));
    });

  program
    .command('takeover')
    .description('bring all addresses of the pair, with their connections, to this gateway')
    .requiredOption('-c, --config <file>', 'the configuration (YAML) that it runs with')
    .action(async ({ config }: { config: string }) => {
      io.out(statusText(await ask(config, 'takeover', io)));
    });

  program
    .command('drain')
    .description('bring all addresses of this gateway, with their connections, to the other one, and take nothing back')
    .requiredOption('-c, --config <file>', 'the configuration (YAML) that it runs with')
    .option('--undo', 'take part again')
    .action(async ({ config, undo = false }: { config: string; undo?: boolean }) => {
      io.out(statusText(await ask(config, undo ? 'undrain' : 'drain', io)));
    });

  program
    .command('demo')
    .description('kill a real PostgreSQL under load, again and again, and count what the clients noticed')
    .option('--pair', 'two gateways, of which hosts and processes are lost as well (as root)')
    .option('--rounds <n>', 'failovers (default: 3; with --pair, how often all faults come, default: 1)', positive)
    .option('--clients <n>', 'clients', positive, 32)
    .addOption(new Option('--codec <name>', 'what the clients speak').choices(['postgres', 'tds']).default('postgres'))
    .option('--json', 'as JSON')
    .action(async ({ rounds, clients, codec, pair = false, json = false }: DemoFlags) => {
      if (pair && codec !== 'postgres') program.error('error: --pair is for PostgreSQL only');
      const { runDemo } = await parts.demo();
      const options = { rounds: rounds ?? (pair ? 1 : 3), clients, codec, pair, json, out: io.out };
      if (!(await runDemo(options))) code = EXIT.failed;
    });

  try {
    await program.parseAsync(argv, { from: 'user' });
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    io.err(`${writeError(error, io)}\n`);
    return exitCodeOf(error);
  }
}

async function run(config: Config, io: Io, parts: Parts): Promise<void> {
  const log = createLog(config.log);
  // Asked for first: a signal during the start must not be lost.
  const stopped = io.stopped();
  const { startGateway } = await parts.gateway();
  let leave = (_: null): void => {};
  const left = new Promise<null>((resolve) => {
    leave = resolve;
  });
  const gateway = await startGateway(config, { log, keeper: io.env.OUTLIVE_KEEPER, onRetired: () => leave(null) });
  for (const { name, port } of gateway.listeners) log.info({ listener: name, port }, 'listening');
  const signal = await Promise.race([stopped, left]);
  if (signal === null) {
    // What is still open belongs to the next engine: nothing is to be closed in order.
    log.info({}, 'replaced');
    io.end();
    return;
  }
  log.info({ signal }, 'stopping');
  await gateway.stop();
  log.info({}, 'stopped');
}

/** Asks the gateway that runs with this configuration. */
async function ask(file: string, order: Order | 'status', io: Io): Promise<unknown> {
  const { admin } = await loadConfig(file, io.env);
  if (admin === null) {
    const message = `${file} has no admin interface, which this command asks; add admin: { listen: 127.0.0.1:9187 }`;
    throw new CodedError('OUTLIVE_ADMIN_UNREACHABLE', 'config', message);
  }
  return await askAdmin(admin.listen, order, ADMIN_MS);
}

/** @param databases where the servers are to be asked; null: they are not */
async function check(file: string, json: boolean, databases: readonly string[] | null, io: Io): Promise<number> {
  try {
    const config = await loadConfig(file, io.env);
    const extensions = await loadExtensions(config);
    await tryPlugins(config, extensions);
    const report = describeConfig(config, extensions, config.pair === null ? null : await tryAbilities());
    if (databases !== null) report.unprotected.push(...(await outcomeGaps(config, extensions, databases)));
    io.out(json ? `${JSON.stringify({ ok: true, ...report }, null, 2)}\n` : renderReport(report, io.columns));
    return EXIT.ok;
  } catch (error) {
    if (!json) {
      io.err(`${writeError(error, io)}\n`);
    } else {
      const { code = 'OUTLIVE_INTERNAL', message } = error as CodedError;
      const problems = error instanceof ConfigError ? error.problems : [];
      io.out(`${JSON.stringify({ ok: false, error: { code, message, problems } }, null, 2)}\n`);
    }
    return EXIT.usage;
  }
}

/** What of the tables of rows is missing on the servers. */
async function outcomeGaps(config: Config, extensions: Extensions, databases: readonly string[]): Promise<Gap[]> {
  const { inspectOutcome } = await import('./setup.js');
  const gaps: Gap[] = [];
  for (const listener of config.listeners) {
    for (const database of databases.length > 0 ? databases : [null]) {
      const found = await inspectOutcome(config, extensions, listener, database);
      if (found === null) continue;
      const fix = `outlive setup --listener ${listener.name} --database ${found.database}`;
      const where = `listener ${listener.name}, database ${found.database}`;
      gaps.push(...found.missing.map((what) => ({ where, what: `commits fail or cannot be proved: ${what}`, fix })));
    }
  }
  return gaps;
}

/** An option that may be given several times. */
function gathered(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value];
}

function age(text: string): number {
  const ms = parseDuration(text);
  if (ms !== null) return ms;
  throw new InvalidArgumentError('It must be a duration such as 90m or 2h.');
}

function positive(text: string): number {
  if (/^[1-9]\d{0,5}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('It must be a whole number from 1.');
}

function writeError(error: unknown, io: Io): string {
  const text =
    error instanceof CodedError
      ? `error ${error.code}: ${error.message}`
      : `error OUTLIVE_INTERNAL: ${error instanceof Error ? error.message : String(error)}`;
  return io.env.OUTLIVE_DEBUG && error instanceof Error ? `${text}\n${error.stack}` : text;
}

function exitCodeOf(error: unknown): number {
  return error instanceof CodedError && /^OUTLIVE_(CONFIG|PLUGIN)_/.test(error.code) ? EXIT.usage : EXIT.failed;
}
