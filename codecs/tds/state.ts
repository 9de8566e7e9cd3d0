/** What of a session outlives its requests, as far as their texts tell: what a new server must be brought to, and what it cannot have. */

import type { Blocker } from '../../core/contract/index.js';
import type { TdsRequest } from './requests.js';
import { CONTEXT_INFO } from './sql.js';

/** Plain data. */
export interface FrozenState {
  readonly settled: Settled;
  readonly unit: readonly Change[];
  readonly believed: readonly Change[];
}

interface Settled {
  /** Statements by what they set, in the order in which they are to be run. */
  readonly settings: ReadonlyMap<string, string>;
  /** Null: that of the login. */
  readonly database: string | null;
  readonly temporary: ReadonlySet<string>;
  readonly unknown: ReadonlySet<string>;
  /** INSERT BULK whose rows have yet to come. */
  readonly bulk: string | null;
}

/** What one request did; `reset` before all else. */
export interface Change {
  readonly reset: boolean;
  readonly settings: readonly (readonly [option: string, text: string])[];
  readonly database: string | null;
  readonly made: readonly string[];
  readonly dropped: readonly string[];
  readonly unknown: readonly string[];
  /** It announces this bulk load; null: it is none, or over. */
  readonly bulk: string | null;
}

const FRESH: Settled = { settings: new Map(), database: null, temporary: new Set(), unknown: new Set(), bulk: null };

/**
 * Nothing of it is undone by a rollback but temporary tables, and of those a rollback makes no difference that matters: at worst one that is
 * gone is named. Changes count when their unit is over, because until then it may be repeated.
 */
export class SessionState {
  private settled: Settled = FRESH;
  private unit: Change[] = [];
  /** Changes of the open unit as its client knows them, while it is repeated. */
  private believed: readonly Change[] = [];

  /** A request was answered without an error that kept it from taking effect. */
  done(change: Change): void {
    this.unit.push(change);
  }

  /** Is this setting ON, as the client knows it? */
  isOn(option: string): boolean {
    let on = / ON$/i.test(this.settled.settings.get(option) ?? '');
    for (const { reset, settings } of this.unit) {
      if (reset) on = false;
      for (const [name, text] of settings) if (name === option) on = / ON$/i.test(text);
    }
    return on;
  }

  /** May this setting be another one than is known? */
  unsureOf(option: string): boolean {
    const name = `setting ${option}`;
    return this.settled.unknown.has(name) || this.unit.some(({ unknown }) => unknown.includes(name));
  }

  /** A request came to nothing. If a bulk load was announced, that was it, or its client sends something else in its place: it is over. */
  bulkOver(): void {
    if (this.settled.bulk !== null) this.settled = { ...this.settled, bulk: null };
  }

  unitEnd(): void {
    this.believed = [];
    if (this.unit.length === 0) return;
    this.settled = this.unit.reduce(apply, this.settled);
    this.unit = [];
  }

  rewind(): void {
    if (this.unit.length >= this.believed.length) this.believed = this.unit;
    this.unit = [];
  }

  abandon(): void {
    if (this.believed.length > this.unit.length) this.unit = [...this.believed];
    this.unitEnd();
  }

  /** Batches that restore the session, each with what it restores. */
  batches(): { readonly what: string; readonly name: string; readonly text: string }[] {
    const { settings, database, bulk } = this.settled;
    const batches = [...settings].map(([name, text]) => ({ what: 'setting', name, text }));
    if (database !== null) {
      const text = `USE [${database.replaceAll(']', ']]')}]`;
      batches.unshift({ what: 'database', name: database, text });
    }
    if (bulk !== null) batches.push({ what: 'bulk load', name: '', text: bulk });
    return batches;
  }

  blockers(): Blocker[] {
    const { temporary, unknown } = this.settled;
    return [
      ...[...temporary].map((name) => ({ what: 'temporary table', name })),
      ...[...unknown].map((name) => ({ what: 'state of the session', name })),
    ];
  }

  forgetBlockers(): void {
    this.settled = { ...this.settled, temporary: new Set(), unknown: new Set() };
  }

  freeze(): FrozenState {
    const { settled, unit, believed } = this;
    return { settled, unit, believed };
  }

  static thaw({ settled, unit, believed }: FrozenState): SessionState {
    return Object.assign(new SessionState(), { settled, unit: [...unit], believed });
  }
}

/** What a request that was done changes; null when that is nothing. */
export function changeOf(request: TdsRequest): Change | null {
  const { facts, nested, reset, unknown, isolation } = request;
  // What a procedure sets is undone behind it but for this, and its temporary tables are gone but for global ones.
  const own = facts !== null && !nested ? facts : null;
  const unsure = facts?.conditional === true;
  const set = (facts?.settings ?? []).filter(({ option }) => !nested || option === CONTEXT_INFO);
  const lasts = (table: string) => !nested || table.startsWith('##');
  const change: Change = {
    reset,
    settings: [
      ...(unsure ? [] : set.map(({ option, text }) => [option, text] as const)),
      ...(isolation === null ? [] : [['ISOLATION', `SET TRANSACTION ISOLATION LEVEL ${isolation}`] as const]),
    ],
    database: unsure ? null : (own?.database ?? null),
    made: (facts?.made ?? []).filter(lasts),
    dropped: unsure ? [] : (facts?.dropped ?? []).filter(lasts),
    unknown: [
      ...unknown,
      ...(own?.unknown ?? []),
      ...(facts?.lasting ?? []),
      ...(unsure ? set.map(({ option }) => `setting ${option}`) : []),
      ...(unsure && own !== null && own.database !== null ? ['database'] : []),
    ],
    bulk: request.bulk,
  };
  const { settings, database, made, dropped } = change;
  const nothing = settings.length + made.length + dropped.length + change.unknown.length === 0;
  const bulk = request.bulk !== null || request.kind === 'bulk load';
  return nothing && database === null && !reset && !bulk ? null : change;
}

function apply(before: Settled, { reset, settings, database, made, dropped, unknown, bulk }: Change): Settled {
  // The isolation level alone outlives a reset.
  const from = reset ? keepIsolation(before) : before;
  const after = new Map(from.settings);
  for (const [option, text] of settings) {
    // The last one counts, where it came.
    after.delete(option);
    after.set(option, text);
  }
  const temporary = new Set([...from.temporary, ...made]);
  for (const name of dropped) temporary.delete(name);
  return {
    settings: after,
    database: database ?? from.database,
    temporary,
    unknown: new Set([...from.unknown, ...unknown]),
    bulk,
  };
}

function keepIsolation({ settings }: Settled): Settled {
  const isolation = settings.get('ISOLATION');
  return isolation === undefined ? FRESH : { ...FRESH, settings: new Map([['ISOLATION', isolation]]) };
}
