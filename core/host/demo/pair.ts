import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../../contract/index.js';
import { guardUnavailable } from '../../io/guard.js';
import { ackHoldUnavailable } from '../../io/hold/index.js';
import { runCommand } from '../../io/index.js';
import { tcpRepairUnavailable } from '../../io/tcp/index.js';
import { type DemoOptions, withPackages } from './index.js';
import { interruptible } from './interrupt.js';
import { killPrimary } from './kill.js';
import { ClientHost } from './lab/clients.js';
import { etcdInstalled, startEtcdOn } from './lab/etcd.js';
import { type GatewayProcess, type LogEvent, startGatewayIn } from './lab/gateway.js';
import { type Host, Lab } from './lab/lab.js';
import { configInFront, type LabPair, startPairIn } from './lab/servers.js';
import { checkLedger, createLedger, readLedger } from './ledger.js';
import { type Act, type PairSummary, pairFaults, renderPairJson, renderPairStory, tellAct } from './pair-report.js';
import { Progress } from './report.js';
import { now } from './workload.js';

type Name = 'a' | 'b';

const PORT = 6432;
const LINK_PORT = 7400;
/** Traffic before each fault, in ms. */
const WARM_UP_MS = 500;
/** How long commits are held back before a fault, so that it interrupts some, in ms. */
const HOLD_MS = 20;
/** How long clients may take to go on, and gateways to do what they are to, in ms. */
const GO_ON_MS = 40_000;
/** A request that takes longer than this has failed. More than a session waits for a server. */
const PATIENCE_MS = 45_000;
const POLL_MS = 20;
/** How often the live line is written anew. */
const SHOW_MS = 250;
const KEPT_MESSAGES = 20;

/**
 * Makes hosts of network namespaces (a client's, two gateways', two database servers', and one for etcd where that is installed), lets clients move money
 * through the first gateway with the unmodified `pg` driver, and in turn kills the gateway's process, cuts its host off, moves the load to the
 * second gateway, and kills the primary database server. In the end the ledger is compared with what the clients were told.
 *
 * Needs root. Where hosts cannot be made, or connections cannot be moved between them, it says so and does nothing.
 *
 * @returns false when the ledger does not hold, a client saw an error, or a connection was not kept
 */
export async function runPairDemo(options: DemoOptions): Promise<boolean> {
  const { json, out } = options;
  const why = await unavailable();
  if (why !== null) {
    out(
      json
        ? `${JSON.stringify({ skipped: why })}\n`
        : `The demo of the pair needs hosts of its own: ${why}. Nothing was done.\n`,
    );
    return true;
  }
  const progress = new Progress(json ? () => {} : out, !json && process.stdout.isTTY === true);
  try {
    const summary = await interruptible((signal) => new PairDemo(options, progress, signal).run());
    progress.clear();
    if (summary === null) {
      out('Interrupted: all hosts are removed.\n');
      return false;
    }
    out(json ? renderPairJson(summary) : renderPairStory(summary));
    return summary.ok;
  } finally {
    progress.clear();
  }
}

async function unavailable(): Promise<string | null> {
  const why = Lab.unavailable() ?? tcpRepairUnavailable();
  return why ?? (await guardUnavailable((command, env, timeoutMs) => runCommand(command, { env, timeoutMs })));
}

/** What a gateway counted in all its lives. */
interface Counted {
  replays: number;
  committed: number;
  aborted: number;
}

class PairDemo {
  readonly #options: DemoOptions;
  readonly #progress: Progress;
  readonly #signal: AbortSignal;
  readonly #gateways = new Map<Name, GatewayProcess>();
  readonly #acts: Act[] = [];
  readonly #takeovers: { gateway: Name; kept: number; reset: number; ms: number; at: number }[] = [];
  /** When planned moves began, in ms since the epoch. */
  readonly #given: number[] = [];
  readonly #messages: string[] = [];
  readonly #counted: Counted = { replays: 0, committed: 0, aborted: 0 };
  #lab!: Lab;
  #pair!: LabPair;
  #clients!: ClientHost;
  /** Of etcd; null where it is not installed: then gateways fence by a command. */
  #store: string | null = null;
  /** The file that holds the secret of the pair. */
  #secret!: string;
  #owner: Name = 'a';
  #doing = 'starting';

  constructor(options: DemoOptions, progress: Progress, signal: AbortSignal) {
    this.#options = options;
    this.#progress = progress;
    this.#signal = signal;
  }

  /** Rejects when it is interrupted. Nothing is left running either way. */
  async run(): Promise<PairSummary> {
    const began = performance.now();
    this.#progress.show('making hosts');
    this.#lab = await Lab.create();
    let live: NodeJS.Timeout | undefined;
    try {
      await this.#begin();
      live = setInterval(() => this.#show(), SHOW_MS);
      for (let round = 0; round < this.#options.rounds; round++) await this.#round(round === this.#options.rounds - 1);
      return await this.#end(began);
    } finally {
      clearInterval(live);
      this.#progress.show('stopping');
      await this.#pair?.stop();
      await this.#lab.destroy();
    }
  }

  async #begin(): Promise<void> {
    const { clients } = this.#options;
    const lab = this.#lab;
    this.#secret = lab.write('pair.secret', randomBytes(24).toString('base64'));
    this.#progress.show('starting a PostgreSQL primary and its synchronous standby');
    const hosts = [lab.host('db1'), lab.host('db2')] as const;
    // Sessions of both gateways, of one that is dead and whose servers have not noticed, spares, monitors and helpers.
    const connections = String(Math.max(200, clients * 4 + 100));
    this.#pair = await withPackages(() => startPairIn(hosts, { settings: { max_connections: connections } }));
    if (etcdInstalled()) this.#store = await startEtcdOn(lab.host('store'));
    this.#signal.throwIfAborted();
    this.#progress.show('starting two gateways and their clients');
    await Promise.all([this.#start('a'), this.#start('b')]);
    // Clients that came before the address was here would find nobody.
    await this.#until('gateway a serves', async () => (await this.#status('a')).addresses[0].owner === 'a');
    this.#clients = await ClientHost.start(lab.host('client'));
    await createLedger((sql) => this.#pair.primary.query(sql), await this.#clients.accounts(clients));
    const slower = Math.max(1, clients / 32);
    await this.#unless(
      this.#clients.begin({
        counts: { transfer: clients },
        address: this.#address,
        port: PORT,
        think: { inside: 150 * slower, between: 60 * slower },
        patience: PATIENCE_MS,
      }),
    );
    await this.#followed();
    const { primary, standby } = this.#pair;
    this.#progress.line(
      `PostgreSQL ${primary.version}: primary on ${primary.host}, synchronous standby on ${standby.host}; gateways a on ` +
        `${lab.host('a').address} and b on ${lab.host('b').address}, ${this.#store === null ? 'fencing each other by a command' : `with a lease in etcd on ${lab.host('store').address}`}; ` +
        `${clients} clients (pg) on ${lab.host('client').address} connect to ${this.#address}`,
    );
  }

  /** All faults in turn. @param last nothing comes after it */
  async #round(last: boolean): Promise<void> {
    if (this.#owner !== 'a') await this.#moveTo('a');
    await this.#loseGateway('the engine of gateway a was killed', 'the kill', () => this.#gateways.get('a')!.kill());
    // Fencing has switched its host off; a lease has not.
    await this.#rejoin(this.#store === null);
    await this.#loseGateway('the host of gateway a was cut off', 'that', () => this.#lab.host('a').crash());
    await this.#rejoin(true);
    await this.#moveLoad();
    await this.#loseDatabase(last);
  }

  async #loseGateway(what: string, from: string, hit: () => Promise<void>): Promise<void> {
    await this.#warmUp(`${what.replace(' was ', ' is about to be ')}`);
    await this.#count('a');
    const { standby } = this.#pair;
    const before = this.#takeovers.length;
    await this.#clients.watch();
    // Commits wait for a standby that stands still, so that the fault meets some.
    await standby.freeze();
    let since: number;
    let at: Awaited<ReturnType<ClientHost['progress']>>;
    try {
      await sleep(HOLD_MS);
      at = await this.#clients.progress();
      since = now();
      await hit();
    } finally {
      await standby.thaw();
    }
    this.#doing = `${what}; gateway b is about to take over`;
    await this.#until('gateway b takes over', async () => this.#takeovers.length > before);
    this.#owner = 'b';
    await this.#finishAct(what, from, at, since, before);
  }

  /** Gateway a is started again, and gets the address back when it follows all sessions. @param reboot its host was switched off */
  async #rejoin(reboot: boolean): Promise<void> {
    this.#doing = 'gateway a comes back';
    if (reboot) await this.#lab.host('a').reboot();
    this.#signal.throwIfAborted();
    await this.#start('a');
    await this.#followed();
    await this.#moveTo('a');
    this.#progress.line('   gateway a came back, followed all sessions, and took the address back (outlive takeover)');
  }

  async #moveLoad(): Promise<void> {
    const what = 'the load was moved to gateway b (outlive takeover)';
    await this.#warmUp('the load is about to be moved to gateway b');
    await this.#clients.watch();
    const before = this.#takeovers.length;
    const at = await this.#clients.progress();
    await this.#moveTo('b');
    await this.#finishAct(what, 'it began', at, this.#given[this.#given.length - 1] ?? now(), before);
  }

  async #loseDatabase(last: boolean): Promise<void> {
    await this.#warmUp('the primary database server is about to be killed');
    const name = this.#pair.primary.name;
    await this.#clients.watch();
    let asked: ReturnType<ClientHost['progress']> | undefined;
    const { writableAt } = await killPrimary(this.#pair, HOLD_MS, () => (asked = this.#clients.progress()));
    const at = await this.#unless(asked!);
    this.#doing = `database server ${name} was killed`;
    await this.#finishAct(
      `the primary database server ${name} was killed`,
      'the standby took writes',
      at,
      writableAt,
      null,
    );
    if (!last) await this.#unless(this.#pair.rebuild());
  }

  /** @param before how many takeovers there were before; null when none belongs to it */
  async #finishAct(
    what: string,
    from: string,
    { open, committing }: { readonly open: number; readonly committing: number },
    since: number,
    before: number | null,
  ): Promise<void> {
    const { pauses, silent } = await this.#unless(this.#clients.pauses(since, GO_ON_MS));
    const takeover = before === null ? null : (this.#takeovers[before] ?? null);
    const act = { number: this.#acts.length + 1, what, open, committing, from, pauses, silent, takeover };
    this.#acts.push(act);
    tellAct(this.#progress, act);
  }

  async #end(began: number): Promise<PairSummary> {
    const { clients } = this.#options;
    this.#doing = 'comparing the ledger with what the clients were told';
    const report = await this.#unless(this.#clients.finish(PATIENCE_MS));
    for (const name of this.#gateways.keys()) await this.#count(name);
    const verdict = checkLedger(
      await readLedger((sql) => this.#pair.primary.query(sql)),
      report.claims,
      report.accounts,
    );
    const kept = this.#takeovers.reduce((sum, each) => sum + each.kept, 0);
    const byGateways = this.#takeovers.reduce((sum, each) => sum + each.reset, 0);
    const byClients = report.connections.filter(({ portBefore, portNow }) => portNow !== portBefore).length;
    const summary = {
      acts: this.#acts,
      takeovers: this.#takeovers,
      kept,
      // A connection that breaks is seen at both ends, or by its client alone.
      reset: Math.max(byGateways, byClients, report.reconnects),
      clients,
      seconds: (performance.now() - began) / 1000,
      transactions: report.transactions,
      replays: this.#counted.replays,
      outcomeCommitted: this.#counted.committed,
      outcomeAborted: this.#counted.aborted,
      errors: report.errors,
      wrongReads: report.wrongReads,
      verdict,
      messages: this.#messages,
      ok: false,
    };
    return { ...summary, ok: pairFaults(summary).length === 0 };
  }

  // ---------------------------------------------------------------------------------------------------------- gateways

  get #address(): string {
    return this.#lab.floating().address;
  }

  async #start(name: Name): Promise<void> {
    const lab = this.#lab;
    const host = lab.host(name);
    const peer = lab.host(other(name));
    const proof =
      this.#store === null
        ? { fence: { plugin: 'command', command: powerOff(peer), timeout: '5s' } }
        : { lease: { plugin: 'etcd', endpoints: [this.#store], ttl: 3000, prefix: '/outlive/demo/' } };
    const config = {
      ...configInFront(this.#pair, `0.0.0.0:${PORT}`, this.#options.clients),
      pair: {
        name,
        listen: `${host.address}:${LINK_PORT}`,
        peer: { name: peer.name, address: `${peer.address}:${LINK_PORT}` },
        secret: { file: this.#secret },
        addresses: [{ address: this.#address, home: 'a', mover: { plugin: 'address-ip', interface: host.interface } }],
        ...(ackHoldUnavailable() === null ? { holdAcknowledgements: { interface: host.interface } } : {}),
        ...proof,
      },
    };
    this.#gateways.set(name, await startGatewayIn(host, config, { onEvent: (event) => this.#heard(name, event) }));
  }

  /** A line of a gateway's log. */
  #heard(gateway: Name, event: LogEvent): void {
    const { msg, level, code } = event;
    if (msg === 'serving an address' && Number(event.connections) + Number(event.lost) > 0) {
      const [kept, reset, ms] = [event.connections, event.lost, event.ms].map(Number);
      this.#takeovers.push({ gateway, kept, reset, ms, at: now() });
    }
    if (msg === 'gave an address to the other gateway') this.#given.push(now() - Number(event.ms));
    if (code === 'OUTLIVE_TAKEOVER_GAP') {
      const takeover = this.#takeovers.findLast((each) => each.gateway === gateway);
      if (takeover !== undefined) {
        takeover.kept--;
        takeover.reset++;
      }
    }
    if (level !== 'warn' && level !== 'error') return;
    this.#messages.push(`${gateway}: ${msg} ${JSON.stringify({ ...event, msg: undefined, level: undefined })}`);
    if (this.#messages.length > KEPT_MESSAGES) this.#messages.shift();
  }

  /** What the gateway says of the pair. */
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the status page
  async #status(name: Name): Promise<any> {
    return (await this.#gateways.get(name)!.status()).pair;
  }

  /** Adds what a gateway counted that is about to end. */
  async #count(name: Name): Promise<void> {
    const { stats } = await this.#gateways.get(name)!.status();
    this.#counted.replays += stats.replays.done ?? 0;
    this.#counted.committed += stats.outcomes.committed ?? 0;
    this.#counted.aborted += stats.outcomes['not-committed'] ?? 0;
  }

  /** Waits until the gateway that does not serve could go on with every session. */
  async #followed(): Promise<void> {
    const { clients } = this.#options;
    const owner = this.#owner;
    await this.#until(`gateway ${other(owner)} follows all sessions of ${owner}`, async () => {
      const [{ replicas }, { shadows }] = await Promise.all([this.#status(owner), this.#status(other(owner))]);
      return replicas.followed === clients && shadows.adoptable === clients;
    });
  }

  /** An operator's order: the gateway gets the address. */
  async #moveTo(name: Name): Promise<void> {
    const { host, file } = this.#gateways.get(name)!;
    const before = this.#takeovers.length;
    await this.#unless(host.run(process.execPath, [this.#lab.path('core/host/bin.js'), 'takeover', '--config', file]));
    await this.#until(`gateway ${name} takes over`, async () => this.#takeovers.length > before);
    this.#owner = name;
    await this.#followed();
  }

  // ----------------------------------------------------------------------------------------------------------- waiting

  /** Rejects as soon as the demo is interrupted. */
  #unless<T>(promise: Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const stop = () => reject(this.#signal.reason);
      this.#signal.addEventListener('abort', stop, { once: true });
      if (this.#signal.aborted) stop();
      promise.then(resolve, reject).finally(() => this.#signal.removeEventListener('abort', stop));
    });
  }

  /** Waits for something; a gateway that does not answer is asked again. Rejects with OUTLIVE_LAB_FAILED after {@link GO_ON_MS}. */
  async #until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const deadline = performance.now() + GO_ON_MS;
    while (!(await this.#unless(holds().catch(() => false)))) {
      if (performance.now() > deadline) {
        const said = [...this.#messages, ...[...this.#gateways.values()].flatMap(({ tail }) => tail.slice(-20))];
        const message = `${what}: not within ${GO_ON_MS} ms; the gateways said:\n${said.join('\n')}`;
        throw new CodedError('OUTLIVE_LAB_FAILED', 'system', message);
      }
      await sleep(POLL_MS);
    }
  }

  /** Traffic as it is, until a transaction is open: a fault that meets nobody shows nothing. */
  async #warmUp(doing: string): Promise<void> {
    this.#doing = doing;
    await sleep(WARM_UP_MS, undefined, { signal: this.#signal });
    await this.#until('a transaction is open', async () => (await this.#clients.progress()).open > 0);
  }

  /** Writes the live line. */
  #show(): void {
    const doing = this.#doing;
    this.#clients
      .progress()
      .then(({ transactions, errors }) =>
        this.#progress.show(`${transactions} transactions, ${errors} errors: ${doing}`),
      )
      .catch(() => {});
  }
}

function other(name: Name): Name {
  return name === 'a' ? 'b' : 'a';
}

/** A command that does to a host of the lab what a power switch does: its cable is dead, then its processes. */
function powerOff({ netns, interface: device }: Host): string[] {
  const script = `ip -n "$1" link set "$2" down || exit 1; for pid in $(ip netns pids "$1"); do kill -KILL "$pid"; done; true`;
  return ['/bin/sh', '-c', script, 'power-off', netns, device];
}
