/**
 * Decides what moves to balance load: addresses with all their clients between the two gateways of a pair, and sessions between the database
 * servers of a listener that allows several. Pure: time comes as an argument, and what is remembered goes in and out as plain data.
 *
 * The model is TiProxy (pingcap/tiproxy, pkg/balance): factors in order, of which a later one never undoes an earlier one; a threshold on the
 * ratio of the busiest and the idlest member; smoothed figures to decide on; a speed limit. Added are hysteresis, a rest for what was moved, and
 * that nothing moves which would not help.
 */

/** What is compared, in this order. */
export const FACTORS = ['cpu', 'sessions'] as const;
export type Factor = (typeof FACTORS)[number];

/** When and how fast load moves. */
export interface BalanceConfig {
  /** A move begins when the ratio of the busiest and the idlest member is greater than this. Default 1.5. */
  readonly start: number;
  /** Moves go on until the ratio is less than this, and none may bring about a ratio beyond it the other way round. Default 1.15. */
  readonly stop: number;
  /** The ratio must be beyond `start` for so long, in ms. Default 20000 (addresses), 5000 (sessions). */
  readonly sustain: number;
  /** Half-life of the smoothed figures, in ms. Default 15000 (addresses), 5000 (sessions). */
  readonly halfLife: number;
  /** Figures older than this are none, in ms. Default 5000. */
  readonly stale: number;
  /** Speed limit. Default 2 (addresses), 600 (sessions). */
  readonly movesPerMinute: number;
  /** What was moved, for whatever reason, stays for so long, in ms. Default 300000 (addresses), 60000 (sessions). */
  readonly rest: number;
  /** And for so long it does not go back to where it came from, in ms. Default 900000 (addresses), 300000 (sessions). */
  readonly noReturn: number;
  /** A member whose CPU is beyond this gets nothing, 0..1. Default 0.8. */
  readonly receiverCpu: number;
  /** A member whose event loop is late by more than this gets nothing, in ms. Default 100. */
  readonly receiverDelay: number;
  /** A move must take away at least this part of the imbalance, 0..1. Default 0.02 (addresses), 0 (sessions). */
  readonly minGain: number;
  /** So many sessions are added to each member's before they are compared: 3 against 1 is no imbalance. Default 10. */
  readonly slack: number;
}

/** For addresses between gateways: few, large, each move felt by all clients of the address. */
export const ADDRESS_BALANCE: BalanceConfig = {
  start: 1.5,
  stop: 1.15,
  sustain: 20_000,
  halfLife: 15_000,
  stale: 5000,
  movesPerMinute: 2,
  rest: 300_000,
  noReturn: 900_000,
  receiverCpu: 0.8,
  receiverDelay: 100,
  minGain: 0.02,
  slack: 10,
};

/** For sessions between servers: many, small. */
export const SESSION_BALANCE: BalanceConfig = {
  ...ADDRESS_BALANCE,
  sustain: 5000,
  halfLife: 5000,
  movesPerMinute: 600,
  rest: 60_000,
  noReturn: 300_000,
  minGain: 0,
};

/** One of those between whom load is balanced: a gateway or a server. */
export interface Member {
  readonly name: string;
  /** It may be given something: it is heard, not draining, reaches what it needs. One that may not can still give. */
  readonly available: boolean;
  /** When the figures were measured, on the clock of `now`, in ms. */
  readonly measuredAt: number;
  /** 0..1; null when it is not known, then only sessions are compared. */
  readonly cpu: number | null;
  /** 99th percentile; null when it is not known. */
  readonly eventLoopDelayMs: number | null;
  /** All of its sessions, also those that cannot be moved. */
  readonly sessions: number;
}

/** Something that can be moved as a whole: an address or a session. */
export interface Unit {
  readonly id: string;
  /** Name of the member that has it. */
  readonly on: string;
  /** Name of the member that it is on its way to. */
  readonly movingTo: string | null;
  /** It may be moved now: a safe point, no order against it. */
  readonly movable: boolean;
  /** 1 for a session. */
  readonly sessions: number;
  /** Its part of the member's work, in any unit that all units of a member share, such as requests per second; null: told by its sessions. */
  readonly work: number | null;
  /** Its last move for whatever reason, takeovers included; null when it never moved. */
  readonly moved: { readonly at: number; readonly from: string } | null;
}

/** Figures that do not jump; what is on its way counts where it goes. */
interface Smooth {
  readonly cpu: number | null;
  readonly eventLoopDelayMs: number | null;
  readonly sessions: number;
  /** When the figures that went into it last were measured. */
  readonly at: number;
}

/** What is remembered from one decision to the next: plain data. */
export interface BalanceMemory {
  readonly smooth: Readonly<Record<string, Smooth>>;
  /** The imbalance that is being watched (`since`) or, once it lasted long enough, reduced. */
  readonly imbalance: {
    readonly factor: Factor;
    readonly from: string;
    readonly to: string;
    readonly since: number;
    readonly reducing: boolean;
  } | null;
  /**
   * An imbalance that no move could make less, and when that was found. Until it gets worse by `stop`, or `noReturn` is over, it is left as it
   * is: else one of many jumps of the figures would make a move look well that is not.
   */
  readonly hopeless: {
    readonly factor: Factor;
    readonly from: string;
    readonly ratio: number;
    readonly at: number;
  } | null;
  /** Moves that the speed limit allows now, and when that was so. */
  readonly allowance: { readonly moves: number; readonly at: number } | null;
}

export const NO_MEMORY: BalanceMemory = { smooth: {}, imbalance: null, hopeless: null, allowance: null };

/** All that a decision depends on. */
export interface BalanceState {
  readonly members: readonly Member[];
  readonly units: readonly Unit[];
  /** Only this member may give: each gateway decides about what it has, and so at most the busier one does. Null: any member may. */
  readonly giver: string | null;
  readonly memory: BalanceMemory;
}

export interface Move {
  readonly id: string;
  readonly from: string;
  readonly to: string;
  readonly factor: Factor;
}

/**
 * Why nothing moves, or that something does.
 * - `balanced`: no ratio is beyond the threshold
 * - `unknown`: fewer than two members have figures
 * - `no-receiver`: none is available that has room
 * - `not-giver`: another member is the busier one
 * - `opposed`: an earlier factor says the opposite
 * - `watching`: the imbalance does not last long enough yet
 * - `slow`: the speed limit
 * - `no-unit`: nothing that may be moved would help
 * - `moving`
 */
export type Verdict =
  | 'balanced'
  | 'unknown'
  | 'no-receiver'
  | 'not-giver'
  | 'opposed'
  | 'watching'
  | 'slow'
  | 'no-unit'
  | 'moving';

export interface BalanceDecision {
  readonly moves: readonly Move[];
  readonly verdict: Verdict;
  /** For the next decision. */
  readonly memory: BalanceMemory;
}

/** What a member is believed to carry. */
interface Carried {
  readonly member: Member;
  /** Null when one does not know. */
  cpu: number | null;
  sessions: number;
  delay: number | null;
  /** Units that are there or on their way there. */
  readonly units: Unit[];
}

/**
 * CPU usage is compared by what is left of it, as TiProxy does: 10 % against 25 % is fine, 80 % against 95 % is not. A little more than 1,
 * so that a full member has a finite ratio.
 */
const CPU_ROOM = 1.3;
/** Of two units that help alike within this part of the imbalance, the one that was moved longer ago goes. */
const ALIKE = 0.02;

/**
 * Decides what to move now. Call it about once a second with the latest figures.
 *
 * @param now on one clock with all times in `state`, in ms
 * @param state members, units, and the memory that the last call gave
 */
export function decideMoves(now: number, state: BalanceState, config: BalanceConfig): BalanceDecision {
  const allowance = refill(now, state.memory.allowance, config);
  const fresh = state.members.filter(({ measuredAt }) => now - measuredAt <= config.stale);
  const carried = carry(fresh, state.units);
  for (const each of carried) smoothen(each, state.memory, config);
  const smooth = remember(carried);
  const idle = (verdict: Verdict): BalanceDecision => ({
    moves: [],
    verdict,
    memory: { smooth, imbalance: null, hopeless: state.memory.hopeless, allowance },
  });

  if (fresh.length < 2) return idle('unknown');
  const found = findImbalance(now, carried, state.memory, config);
  if (typeof found === 'string') return idle(found);
  if (state.giver !== null && found.from.member.name !== state.giver) return idle('not-giver');

  const { factor, from, to } = found;
  const last = state.memory.imbalance;
  const same = last !== null && last.factor === factor && last.from === from.member.name;
  const since = same ? last.since : now;
  const reducing = (same && last.reducing) || now - since >= config.sustain;
  const imbalance = { factor, from: from.member.name, to: to.member.name, since, reducing };
  const waiting = (verdict: Verdict): BalanceDecision => ({
    moves: [],
    verdict,
    memory: { smooth, imbalance, hopeless: state.memory.hopeless, allowance },
  });
  if (!reducing) return waiting('watching');
  if (allowance.moves < 1) return waiting('slow');

  const before = ratio(factor, from, to, config)!;
  const moves: Move[] = [];
  let hopeless = false;
  while (allowance.moves - moves.length >= 1) {
    const helping = helpfulUnits(factor, from, to, config);
    const unit = bestUnit(helping.filter(({ unit }) => mayMove(now, unit, to.member.name, config)));
    if (unit === null) {
      hopeless = moves.length === 0 && helping.length === 0;
      break;
    }
    transfer(unit, from, to);
    moves.push({ id: unit.id, from: from.member.name, to: to.member.name, factor });
  }
  return {
    moves,
    verdict: moves.length > 0 ? 'moving' : 'no-unit',
    memory: {
      // The figures follow later; until then what was moved must not be moved once more.
      smooth: remember(carried),
      imbalance: hopeless ? null : imbalance,
      hopeless: hopeless ? { factor, from: from.member.name, ratio: before, at: now } : state.memory.hopeless,
      allowance: { moves: allowance.moves - moves.length, at: now },
    },
  };
}

/** What the members will carry when all that is on its way has arrived. */
function carry(members: readonly Member[], units: readonly Unit[]): Carried[] {
  const carried = new Map(
    members.map((member): [string, Carried] => {
      const { name, cpu, sessions, eventLoopDelayMs: delay } = member;
      return [name, { member, cpu, sessions, delay, units: units.filter(({ on }) => on === name) }];
    }),
  );
  for (const unit of units) {
    const [from, to] = [carried.get(unit.on), unit.movingTo === null ? undefined : carried.get(unit.movingTo)];
    if (from !== undefined && to !== undefined) transfer(unit, from, to);
  }
  return [...carried.values()];
}

/** Mixes what was remembered into the figures: exponential decay by time, so that it does not matter how often figures come. */
function smoothen(carried: Carried, { smooth }: BalanceMemory, { halfLife }: BalanceConfig): void {
  const { name, measuredAt } = carried.member;
  const old = Object.hasOwn(smooth, name) ? smooth[name] : null;
  if (old === null) return;
  const kept = 0.5 ** (Math.max(0, measuredAt - old.at) / halfLife);
  const mix = (before: number | null, value: number | null) =>
    before === null || value === null ? value : before * kept + value * (1 - kept);
  carried.cpu = mix(old.cpu, carried.cpu);
  carried.delay = mix(old.eventLoopDelayMs, carried.delay);
  carried.sessions = old.sessions * kept + carried.sessions * (1 - kept);
}

function remember(carried: readonly Carried[]): BalanceMemory['smooth'] {
  return Object.fromEntries(
    carried.map(({ member, cpu, delay, sessions }): [string, Smooth] => [
      member.name,
      { cpu, eventLoopDelayMs: delay, sessions, at: member.measuredAt },
    ]),
  );
}

/**
 * What the speed limit allows now. At most one second's worth is saved up, at least one move.
 * @param before what {@link BalanceMemory} tells of it
 */
export function refill(now: number, before: BalanceMemory['allowance'], { movesPerMinute }: BalanceConfig) {
  const most = Math.max(1, movesPerMinute / 60);
  if (before === null) return { moves: most, at: now };
  return { moves: Math.min(most, before.moves + (Math.max(0, now - before.at) * movesPerMinute) / 60_000), at: now };
}

/** Greater is busier; null when it is not known. */
function level(
  factor: Factor,
  { cpu, sessions }: Pick<Carried, 'cpu' | 'sessions'>,
  { slack }: BalanceConfig,
): number | null {
  if (factor === 'sessions') return Math.max(0, sessions) + slack;
  return cpu === null ? null : 1 / (CPU_ROOM - Math.min(1, Math.max(0, cpu)));
}

/** How many times busier `one` is than `other`; null when it is not known. */
function ratio(
  factor: Factor,
  one: Pick<Carried, 'cpu' | 'sessions'>,
  other: Pick<Carried, 'cpu' | 'sessions'>,
  config: BalanceConfig,
): number | null {
  const [a, b] = [level(factor, one, config), level(factor, other, config)];
  return a === null || b === null ? null : a / Math.max(b, Number.MIN_VALUE);
}

/** The first factor that is out of balance, with the busiest and the idlest member; or why there is nothing to do. */
function findImbalance(
  now: number,
  carried: readonly Carried[],
  memory: BalanceMemory,
  config: BalanceConfig,
): { factor: Factor; from: Carried; to: Carried } | Verdict {
  const receivers = carried.filter(
    ({ member, cpu, delay }) =>
      member.available && (cpu ?? 0) <= config.receiverCpu && (delay ?? 0) <= config.receiverDelay,
  );
  let verdict: Verdict = 'balanced';
  for (const factor of FACTORS) {
    const from = extreme(
      factor,
      carried.filter(({ units }) => units.length > 0),
      config,
      1,
    );
    if (from === null) continue;
    const to = extreme(
      factor,
      receivers.filter((each) => each !== from),
      config,
      -1,
    );
    if (to === null) {
      verdict = 'no-receiver';
      continue;
    }
    if (ratio(factor, from, to, config)! <= threshold(now, factor, from.member.name, memory, config)) continue;
    // What helps this factor must not harm the ones before it.
    const earlier = FACTORS.slice(0, FACTORS.indexOf(factor));
    if (earlier.some((each) => (ratio(each, to, from, config) ?? 1) > config.stop)) {
      verdict = 'opposed';
      continue;
    }
    return { factor, from, to };
  }
  return verdict;
}

/** The ratio beyond which something is done. */
function threshold(now: number, factor: Factor, from: string, memory: BalanceMemory, config: BalanceConfig): number {
  const { imbalance, hopeless } = memory;
  if (imbalance?.reducing === true && imbalance.factor === factor && imbalance.from === from) return config.stop;
  const known = hopeless !== null && hopeless.factor === factor && hopeless.from === from;
  if (!known || now - hopeless.at >= config.noReturn) return config.start;
  return Math.max(config.start, hopeless.ratio * config.stop);
}

/** The busiest (1) or the idlest (-1) of them; null when none is known. */
function extreme(factor: Factor, of: readonly Carried[], config: BalanceConfig, sign: 1 | -1): Carried | null {
  let best: Carried | null = null;
  let most = Number.NEGATIVE_INFINITY;
  for (const each of of) {
    const value = level(factor, each, config);
    if (value === null || value * sign <= most) continue;
    best = each;
    most = value * sign;
  }
  return best;
}

interface Helpful {
  readonly unit: Unit;
  /** The imbalance before and after its move, as logarithms of the ratio: the same in either direction. */
  readonly before: number;
  readonly after: number;
}

/** The units whose move would make the imbalance less, whether they may be moved or not. */
function helpfulUnits(factor: Factor, from: Carried, to: Carried, config: BalanceConfig): Helpful[] {
  const imbalance = Math.log(ratio(factor, from, to, config)!);
  if (imbalance <= Math.log(config.stop)) return [];
  const share = cpuShares(from);
  const earlier = FACTORS.slice(0, FACTORS.indexOf(factor));
  const helpful: Helpful[] = [];
  for (const unit of from.units) {
    const lighter = loaded(from, unit, -1, share(unit));
    const heavier = loaded(to, unit, 1, share(unit));
    const reversed = ratio(factor, heavier, lighter, config)!;
    if (reversed > config.stop) continue;
    if (earlier.some((each) => (ratio(each, heavier, lighter, config) ?? 1) > config.stop)) continue;
    const left = Math.abs(Math.log(reversed));
    if (left < imbalance * (1 - config.minGain)) helpful.push({ unit, before: imbalance, after: left });
  }
  return helpful;
}

/** The unit whose move leaves the least imbalance; null of none. */
function bestUnit(helpful: readonly Helpful[]): Unit | null {
  const least = helpful.reduce((lowest, { after }) => Math.min(lowest, after), Number.POSITIVE_INFINITY);
  let best: Unit | null = null;
  for (const { unit, before, after } of helpful) {
    if (after <= least + before * ALIKE && (best === null || longerAgo(unit, best))) best = unit;
  }
  return best;
}

function mayMove(now: number, { movable, movingTo, moved }: Unit, to: string, config: BalanceConfig): boolean {
  if (!movable || movingTo !== null) return false;
  if (moved === null) return true;
  const age = now - moved.at;
  return age >= config.rest && (moved.from !== to || age >= config.noReturn);
}

function longerAgo(one: Unit, other: Unit): boolean {
  return (one.moved?.at ?? Number.NEGATIVE_INFINITY) < (other.moved?.at ?? Number.NEGATIVE_INFINITY);
}

/** The part of the member's CPU that belongs to a unit. */
function cpuShares({ cpu, units }: Carried): (unit: Unit) => number {
  const known = units.every(({ work }) => work !== null);
  const part = (unit: Unit) => (known ? unit.work! : unit.sessions);
  const all = units.reduce((sum, unit) => sum + part(unit), 0);
  return (unit) => (cpu === null || all === 0 ? 0 : (cpu * part(unit)) / all);
}

function loaded({ cpu, sessions }: Carried, unit: Unit, sign: 1 | -1, share: number) {
  return { cpu: cpu === null ? null : cpu + sign * share, sessions: sessions + sign * unit.sessions };
}

function transfer(unit: Unit, from: Carried, to: Carried): void {
  const share = cpuShares(from)(unit);
  Object.assign(from, loaded(from, unit, -1, share));
  Object.assign(to, loaded(to, unit, 1, share));
  from.units.splice(from.units.indexOf(unit), 1);
  to.units.push(unit);
}
