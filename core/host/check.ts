import { createRequire } from 'node:module';
import Table from 'cli-table3';
import {
  type Capabilities,
  CONTRACT_VERSION,
  type Codec,
  CodedError,
  type LeasePlugin,
  type PluginContext,
} from '../contract/index.js';
import { type Abilities, describePair, pairGaps, pairRows } from './check-pair.js';
import {
  type Address,
  type Config,
  fileReader,
  formatDuration,
  formatSize,
  type LimitsConfig,
  type ListenerConfig,
  type PluginUse,
} from './config/index.js';
import { outcomeOf } from './outcome.js';
import { type Extensions, startPlugin } from './registry.js';

/** Version of this Outlive. */
export const VERSION = (createRequire(import.meta.url)('outlive/package.json') as { version: string }).version;

/** Something that is not protected, and what would change that. */
export interface Gap {
  /** Where in the configuration. */
  readonly where: string;
  readonly what: string;
  /** What to do about it; null when nothing can be done. */
  readonly fix: string | null;
}

/** What a configuration would run, as plain data. */
export type CheckReport = ReturnType<typeof describeConfig>;

const OFFLINE = 'OUTLIVE_CHECK_OFFLINE';

/**
 * Starts every plugin with its options, without letting it reach a server or run a command, so that wrong options and missing files
 * show before the gateway runs.
 */
export async function tryPlugins(config: Config, extensions: Extensions): Promise<void> {
  const stop = new AbortController();
  const refuse = async (): Promise<never> => {
    throw new CodedError(OFFLINE, 'plugin', 'A check does not reach servers and runs no commands.');
  };
  const silent = () => {};
  const context: PluginContext = {
    log: { debug: silent, info: silent, warn: silent, error: silent },
    signal: stop.signal,
    ask: refuse,
    lookup: refuse,
    run: refuse,
    readFile: fileReader(config.baseDir),
  };
  const { pair } = config;
  const uses: { use: PluginUse | null; address?: string }[] = [
    ...config.listeners.map(({ credentials: use }) => ({ use })),
    ...config.clusters.flatMap(({ promotion, fence }) => [{ use: promotion }, { use: fence }]),
    ...(pair === null ? [] : [{ use: pair.lease }, { use: pair.fence }]),
    ...(pair?.addresses ?? []).map(({ mover: use, address }) => ({ use, address })),
  ];
  try {
    for (const { use, address } of uses) {
      if (use === null) continue;
      const started = await startPlugin(extensions, use, { ...context, address }).catch((error: unknown) => {
        // It got as far as its first question to the outside: its options are good.
        if (!(error instanceof CodedError && error.code === OFFLINE)) throw error;
      });
      if (use === pair?.lease) await (started as LeasePlugin | undefined)?.close();
    }
  } finally {
    stop.abort();
  }
}

/**
 * Says what a configuration would run, and what of it is not protected: plain data, sizes in bytes, times in ms.
 *
 * @param here what this host can do for a pair; null when that was not tried
 */
export function describeConfig(config: Config, extensions: Extensions, here: Abilities | null = null) {
  return {
    version: VERSION,
    contract: CONTRACT_VERSION,
    file: config.file,
    listeners: config.listeners.map((listener) => {
      const codec = extensions.codecs.get(listener.name)!;
      const perClient = memoryPerClient(listener.limits);
      return {
        name: listener.name,
        address: writeAddress(listener.listen),
        codec: { name: codec.name, contract: codec.contract, capabilities: codec.capabilities },
        auth: listener.auth,
        credentials: listener.credentials?.plugin ?? null,
        tls: listener.tls.mode,
        cluster: listener.cluster,
        target: listener.target,
        standby: listener.standby,
        balance: listener.balance,
        durability: listener.durability,
        mutables: listener.mutables,
        outcome: { ...listener.outcome, ...outcomeOf(listener, codec) },
        limits: listener.limits,
        failover: listener.failover,
        memory: { perClient, total: perClient * listener.limits.clients },
      };
    }),
    clusters: config.clusters.map((cluster) => ({
      name: cluster.name,
      servers: cluster.servers.map(({ name, host, port, tls }) => ({
        name,
        address: writeAddress({ host, port }),
        tls,
      })),
      monitor: cluster.monitor && {
        user: cluster.monitor.user,
        database: cluster.monitor.database,
        interval: cluster.monitor.interval,
        timeout: cluster.monitor.timeout,
      },
      promotion: cluster.promotion && {
        plugin: cluster.promotion.plugin,
        after: cluster.promotion.after,
        timeout: cluster.promotion.timeout,
      },
      fence: cluster.fence && { plugin: cluster.fence.plugin, timeout: cluster.fence.timeout },
      spares: cluster.spares,
      concurrentLogins: cluster.logins.concurrent,
      silence: cluster.detection.silence,
    })),
    pair: describePair(config, here),
    admin: config.admin && writeAddress(config.admin.listen),
    unprotected: [...findGaps(config, extensions), ...pairGaps(config, here)],
  };
}

/** The request being read, the journal, the answers, the queue, and a backlog each way: what one client can fill at most. */
function memoryPerClient({ request, journal, answers, queue, backlog }: LimitsConfig): number {
  return request + journal + answers + queue + 2 * backlog;
}

const WITHOUT: Record<keyof Capabilities, string> = {
  login: 'no session is moved: the codec cannot log in on its own',
  state: 'the settings of a session are not restored: the codec does not follow them',
  outcome: 'the outcome of an interrupted commit cannot be learnt',
  comparison: 'a replay cannot be compared with what the client saw',
  probe: 'the role of a server cannot be asked',
  mutables: 'values that the server made up are not kept: a repeated transaction fails when one differs',
};

function findGaps(config: Config, extensions: Extensions): Gap[] {
  const gaps: Gap[] = [];
  const add = (where: string, what: string, fix: string | null) => gaps.push({ where, what, fix });
  for (const listener of config.listeners) {
    const where = `listener ${listener.name}`;
    const codec = extensions.codecs.get(listener.name)!;
    const exposed = !isLoopback(listener.listen.host);
    if (listener.auth === 'trust' && exposed) {
      add(
        where,
        'whoever reaches the address is let in as any user (auth: trust)',
        'another auth, or listen on 127.0.0.1',
      );
    }
    if (listener.auth === 'password' && listener.tls.mode !== 'require') {
      add(
        where,
        `passwords can cross the network in clear text (tls: ${listener.tls.mode})`,
        'tls: { mode: require }, or auth scram-sha-256',
      );
    } else if (listener.tls.mode === 'off' && exposed) {
      add(where, 'the traffic of clients is not encrypted (tls: off)', 'tls: { mode: require, cert: ..., key: ... }');
    }
    if (listener.mutables === 'strict' && codec.capabilities.mutables) {
      add(
        where,
        'a repeated transaction fails when a value that the server made up differs (mutables: strict)',
        'mutables: keep',
      );
    }
    const { by } = outcomeOf(listener, codec);
    if (by === 'none' && (codec.capabilities.outcome || codec.markers !== undefined)) {
      add(where, 'a commit whose answer is lost has an unknown outcome (outcome: none)', 'outcome: { by: marker }');
    } else if (by !== 'none' && listener.outcome.autocommit === 'unknown') {
      const what = 'a statement that commits by itself and whose answer is lost has an unknown outcome';
      add(where, `${what} (outcome.autocommit: unknown)`, 'outcome: { autocommit: guard }');
    }
    if (by === 'marker') {
      add(where, 'acknowledged commits that a promoted server lacks are not counted (outcome: marker)', null);
    }
    if (listener.target === 'standby') {
      const nowhere =
        'a repeatable read or serializable transaction whose standby is lost fails (40001) when what it read has changed since';
      add(where, nowhere, null);
      add(
        where,
        'what a session reads can be older on the standby that it goes on with (replication lag)',
        'standby.maxLag',
      );
      if (codec.readOnly === undefined) {
        add(
          where,
          'the codec cannot keep sessions from writing where there is no standby',
          'standby: { without: refuse }',
        );
      }
    }
    if (listener.target === 'any') {
      add(where, 'a commit in doubt waits until its own server is back: no other one can tell its outcome', null);
    }
    for (const gap of codecGaps(codec, by !== 'none')) add(where, gap, null);
  }
  for (const cluster of config.clusters) {
    const where = `cluster ${cluster.name}`;
    if (!config.listeners.some((listener) => listener.cluster === cluster.name)) {
      add(where, 'no listener uses it', 'name it in a listener, or remove it');
    }
    if (cluster.servers.length === 1) {
      add(
        where,
        'with one server there is nothing to fail over to: sessions survive its restart only',
        'add a standby',
      );
    }
    if (cluster.monitor === null) {
      add(
        where,
        'nobody watches the servers: a silent loss, a switchover and the role of a server go unnoticed',
        'add monitor',
      );
    } else if (cluster.promotion === null) {
      add(
        where,
        'the gateway promotes no standby: sessions wait until someone else does',
        'add promotion, or run a cluster manager',
      );
    }
    if (cluster.fence === null) {
      add(
        where,
        'a lost primary that is still alive may go on taking writes (split brain): nothing fences it',
        'add fence, or a cluster manager that does',
      );
    }
    for (const server of cluster.servers) {
      if (server.tls === 'verify-full' || isLoopback(server.host)) continue;
      const what = server.tls === 'off' ? 'is not encrypted' : 'can be intercepted: the server is not verified';
      add(`${where}, server ${server.name}`, `the traffic to it ${what} (tls: ${server.tls})`, 'tls: verify-full');
    }
  }
  if (config.admin !== null && !isLoopback(config.admin.listen.host)) {
    add('admin', 'whoever reaches the address can read metrics and status', 'listen on 127.0.0.1');
  }
  return gaps;
}

function codecGaps(codec: Codec, proved: boolean): string[] {
  const missing = Object.entries(WITHOUT).filter(
    ([key]) => !codec.capabilities[key as keyof Capabilities] && !(key === 'outcome' && proved),
  );
  return [...missing.map(([, what]) => what), ...codec.unprotected];
}

function describeOutcome({ by, table, autocommit, retain }: CheckReport['listeners'][number]['outcome']): string {
  const ways = {
    position:
      'position: the server is asked what became of a commit, by the id of its transaction and its place in the log',
    marker: `marker: each transaction that writes leaves a row in ${table}, kept for ${formatDuration(retain)}; outlive setup makes the table`,
    none: 'none: a commit whose answer is lost has an unknown outcome',
  };
  return autocommit === 'guard' || by === 'none'
    ? ways[by]
    : `${ways[by]}; not for statements that commit by themselves`;
}

function describeMutables(policy: 'keep' | 'strict', able: boolean): string {
  if (policy === 'strict') return 'strict: a repeated transaction fails when a value that the server made up differs';
  return able
    ? 'keep: a repeated transaction carries the made-up values that the client saw (sequences, defaults, clocks); what cannot is listed below'
    : 'keep, which the codec cannot do: a repeated transaction fails when a value that the server made up differs';
}

function describeTarget({ target, standby, balance }: Pick<ListenerConfig, 'target' | 'standby' | 'balance'>): string {
  if (target === 'primary') return 'primary: the server that takes writes';
  const what =
    target === 'any'
      ? 'any: of the servers that take writes the one with the fewest sessions'
      : `standby: for reading only, the one with the fewest sessions that is behind by ${formatSize(standby.maxLag)} at most; ` +
        `without one: ${standby.without === 'primary' ? 'the primary' : 'they wait'}`;
  if (!balance.on) return `${what}; live sessions stay where they are`;
  const off = Object.entries(balance.conditions).flatMap(([name, on]) => (on ? [] : [name]));
  return (
    `${what}; live sessions move when idle${balance.replay ? ' or by replay' : ''}, ` +
    `${balance.movesPerMinute} a minute at most${off.length === 0 ? '' : `, but not when ${off.join(', ')}`}`
  );
}

function describeDurability(durability: 'local' | 'pair'): string {
  return durability === 'pair'
    ? 'pair: clients get nothing that the other gateway does not hold'
    : 'local: answers do not wait for the other gateway';
}

function isLoopback(host: string): boolean {
  return /^(localhost|127\.\d+\.\d+\.\d+|::1)$/i.test(host) || host.startsWith('/');
}

/** `127.0.0.1:6432`, `[::1]:6432` */
export function writeAddress({ host, port }: Address): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** A report for people, at most `width` columns wide. */
export function renderReport(report: CheckReport, width = 100): string {
  const parts = [
    `Outlive ${report.version} (contract ${report.contract})${report.file === null ? '' : `, ${report.file}`}`,
  ];
  for (const listener of report.listeners) {
    const { limits, failover, memory, codec } = listener;
    const able = Object.entries(codec.capabilities).map(([name, present]) => `${present ? '' : 'no '}${name}`);
    const perClient =
      `request ${formatSize(limits.request)} + journal ${formatSize(limits.journal)} + answers ${formatSize(limits.answers)}` +
      ` + queue ${formatSize(limits.queue)} + 2 x backlog ${formatSize(limits.backlog)} = ${formatSize(memory.perClient)}`;
    parts.push(
      table(width, `listener ${listener.name}`, [
        ['address', listener.address],
        ['codec', `${codec.name} (contract ${codec.contract}); ${able.join(', ')}`],
        ['auth', `${listener.auth}${listener.credentials === null ? '' : `, users from ${listener.credentials}`}`],
        ['tls', listener.tls],
        ['cluster', listener.cluster],
        ['target', describeTarget(listener)],
        ...(report.pair === null ? [] : [['durability', describeDurability(listener.durability)] as [string, string]]),
        [
          'failover',
          `wait ${formatDuration(failover.wait)}, ${failover.attempts} attempts, keepalive ${formatDuration(failover.keepalive)}, ` +
            `lost commit: ${failover.lostCommit}, unprotected sessions: ${failover.unprotected}`,
        ],
        ['outcome', describeOutcome(listener.outcome)],
        ['mutables', describeMutables(listener.mutables, codec.capabilities.mutables)],
        [
          'limits',
          `${limits.clients} clients, ${limits.greetings} greetings of ${formatDuration(limits.greetingTimeout)} at most`,
        ],
        ['memory', `at most ${perClient} per client, ${formatSize(memory.total)} for ${limits.clients} clients`],
      ]),
    );
  }
  for (const cluster of report.clusters) {
    const { monitor, promotion, fence, spares } = cluster;
    parts.push(
      table(width, `cluster ${cluster.name}`, [
        ...cluster.servers.map((server): [string, string] => [
          `server ${server.name}`,
          `${server.address}, tls ${server.tls}`,
        ]),
        [
          'monitor',
          monitor === null
            ? 'none'
            : `as ${monitor.user} in ${monitor.database}, every ${formatDuration(monitor.interval)}, ` +
              `answer within ${formatDuration(monitor.timeout)}`,
        ],
        ['silence', `a silent, unreachable server is lost after ${formatDuration(cluster.silence)}`],
        [
          'promotion',
          promotion === null
            ? 'none'
            : `${promotion.plugin}, after ${formatDuration(promotion.after)}, within ${formatDuration(promotion.timeout)}`,
        ],
        ['fence', fence === null ? 'none' : `${fence.plugin}, within ${formatDuration(fence.timeout)}`],
        [
          'spares',
          spares.perIdentity === 0 ? 'none' : `${spares.perIdentity} per user and database, ${spares.total} in all`,
        ],
        ['logins', `${cluster.concurrentLogins} at a time per server`],
      ]),
    );
  }
  if (report.pair !== null)
    parts.push(table(width, `pair: this is gateway ${report.pair.name}`, pairRows(report.pair)));
  parts.push(`admin: ${report.admin === null ? 'none' : `http://${report.admin}/`}`);
  parts.push(
    report.unprotected.length === 0
      ? 'Nothing known is left unprotected.'
      : table(
          width,
          'NOT protected',
          report.unprotected.map(({ where, what, fix }) => [where, fix === null ? what : `${what}\n-> ${fix}`]),
        ),
  );
  return `${parts.join('\n\n')}\n`;
}

function table(width: number, title: string, rows: readonly [string, string][]): string {
  const first = Math.max(...rows.map(([key]) => key.length)) + 2;
  const result = new Table({
    colWidths: [first, Math.max(30, width - first - 3)],
    wordWrap: true,
    style: { head: [], border: [] },
  });
  result.push(...rows.map((row) => [...row]));
  return `${title}\n${result.toString()}`;
}
