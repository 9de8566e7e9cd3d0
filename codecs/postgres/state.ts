import type { Blocker } from '../../core/contract/index.js';
import type { StatementFacts } from './sql/facts.js';

/** One change of the session's state, in the order in which the statements were completed. */
export interface Change {
  readonly facts: StatementFacts;
  /** The statement's text, to be run again by `restore`. */
  readonly sql: string;
  /** Values bound to its parameters, where a setting's name may be among them. */
  readonly values: readonly string[];
  /** It calls functions of which only the server knows what they did to the session; the settings that they may have made. */
  readonly hidden: ReadonlySet<string> | null;
}

/** A statement that restores a part of the session, and what to call that part when it cannot be had again. */
export interface Restoring extends Blocker {
  readonly sql: string;
  /** Forgets it: it cannot be had again. */
  readonly forget: () => void;
}

/** What only the server can tell. */
type Kind = 'advisory' | 'temporary' | 'held' | 'settings';

/** What the server was last seen to hold for a session beyond settings. */
export interface Observed {
  readonly advisory: { readonly call: string; readonly label: string }[];
  readonly temporary: string[];
  readonly held: string[];
  /** Settings changed by function calls, where the text of the statement does not tell. */
  readonly settings: [name: string, value: string][] | null;
}

const NOTHING_OBSERVED: Observed = { advisory: [], temporary: [], held: [], settings: null };
/** Something that may be the name of a setting. */
const SETTING_NAME = /^[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)*$/;

/**
 * The state of a session that a new server must be brought to: settings, LISTEN, statements prepared in SQL. Changes inside a
 * transaction count when it commits (SET, LISTEN) or at once (PREPARE, DEALLOCATE), as on the server.
 */
export class SessionState {
  /** Statement texts by what they set; the order of insertion is the order of restoring. */
  private readonly entries = new Map<string, string>();
  private unit: Change[] = [];
  /** What may have changed that only the server can tell, with names where the statements tell them; asked for by `observe`. */
  private dirty = new Map<Kind, Set<string>>();
  /** The same before the unit that ended last: that unit is repeated when its end does not reach the client. */
  private before: ReadonlyMap<Kind, Set<string>> = new Map();
  private observed: Observed = NOTHING_OBSERVED;
  private readonly custom = new Set<string>();
  /** A setting was made whose name only the server knows; it lists no custom ones. */
  private unnamed = false;

  /** A statement was completed inside the open unit. */
  completed(
    facts: StatementFacts,
    sql: string,
    values: readonly string[] = [],
    hidden: ReadonlySet<string> | null = null,
  ): void {
    if (facts.savepoint?.op === 'rollbackTo') {
      this.rollbackTo(facts.savepoint.name);
      return;
    }
    this.unit.push({ facts, sql, values, hidden });
  }

  /** The unit is over; its changes count or do not. */
  unitEnd(committed: boolean): void {
    const unit = this.unit;
    this.believed = [];
    if (unit.length === 0) return;
    this.before = new Map([...this.dirty].map(([kind, names]) => [kind, new Set(names)]));
    this.unit = [];
    for (const change of unit) {
      this.note(change, committed);
      if (committed || isImmediate(change.facts)) this.apply(change);
    }
  }

  /** The unit will be repeated; with `held` the one that ended last, too. */
  rewind(held: boolean): void {
    const immediate = this.unit.filter((change) => isImmediate(change.facts));
    // A replay that was cut short has seen less than the client.
    if (immediate.length >= this.believed.length) this.believed = immediate;
    this.unit = [];
    if (held) this.dirty = new Map(this.before);
  }

  /** What the open unit did that outlives its rollback, as the client knows it, while it is being repeated. */
  private believed: Change[] = [];

  /** The open unit will not be repeated after all. */
  abandon(): void {
    const immediate = this.unit.filter((change) => isImmediate(change.facts));
    for (const change of immediate.length >= this.believed.length ? immediate : this.believed) this.apply(change);
    this.believed = [];
    this.unit = [];
  }

  /** True when there is something that only the server can tell. */
  get needsObservation(): boolean {
    return this.dirty.size > 0;
  }

  /** Names of custom settings (with a dot) that are known: pg_settings does not list those. Null when no settings need to be asked for. */
  get settingsToObserve(): string[] | null {
    return this.dirty.has('settings') ? [...this.custom] : null;
  }

  /** What the server told. */
  observe(observed: Observed): void {
    this.dirty.clear();
    // The server's list of changed settings is complete: it replaces what was gathered from statements.
    if (observed.settings !== null) this.drop('set ');
    this.observed = { ...observed, settings: observed.settings ?? this.observed.settings };
  }

  /** Statements that restore the session, in order. */
  statements(): Restoring[] {
    // set_config and not SET: the value is in the form of current_setting(), also where it is a list.
    const settings = (this.observed.settings ?? []).map(
      ([name, value]): Restoring => ({
        what: 'session setting',
        name,
        sql: `SELECT pg_catalog.set_config(${quoteLiteral(name)}, ${quoteLiteral(value)}, false)`,
        forget: () => {
          const rest = this.observed.settings?.filter(([other]) => other !== name) ?? null;
          this.observed = { ...this.observed, settings: rest };
        },
      }),
    );
    const entries = [...this.entries].map(([key, sql]): Restoring => {
      const kind = key.slice(0, key.indexOf(' '));
      return { what: KINDS[kind], name: key.slice(kind.length + 1), sql, forget: () => this.entries.delete(key) };
    });
    return [...settings, ...entries];
  }

  /** Session-level advisory locks to be taken again. */
  locks(): Observed['advisory'] {
    // Which of them the session still has is not known: taking one that it gave back would keep it from everybody.
    return this.dirty.has('advisory') ? [] : this.observed.advisory;
  }

  /** A lock is somebody else's now. */
  forgetLock(label: string): void {
    this.observed = { ...this.observed, advisory: this.observed.advisory.filter((lock) => lock.label !== label) };
  }

  blockers(): Blocker[] {
    const { observed, dirty } = this;
    const blockers: Blocker[] = [];
    const add = (what: string, names: Iterable<string>) => {
      for (const name of names) blockers.push({ what, name });
    };
    add('temporary table', new Set([...observed.temporary, ...(dirty.get('temporary') ?? [])]));
    add('cursor WITH HOLD', new Set([...observed.held, ...(dirty.get('held') ?? [])]));
    if (dirty.has('advisory')) {
      add('session advisory lock', [...observed.advisory.map(({ label }) => label), ...dirty.get('advisory')!]);
    }
    add('session setting', dirty.get('settings') ?? []);
    if (this.unnamed) add('session setting', ['(its name was computed)']);
    return blockers;
  }

  /** Notifications would be missed during a move, and a lock of another server means nothing to those who wait for it here. */
  ties(): Blocker[] {
    const channels = [...this.entries.keys()].filter((key) => key.startsWith('listen '));
    return [
      ...channels.map((key) => ({ what: KINDS.listen, name: key.slice('listen '.length) })),
      ...this.observed.advisory.map(({ label }) => ({ what: 'session advisory lock', name: label })),
    ];
  }

  /** They are gone for good. Locks are not among them: the session has those that could be taken again. */
  forgetBlockers(): void {
    const { settings } = this.observed;
    this.observed = { ...NOTHING_OBSERVED, advisory: this.locks(), settings };
    this.dirty.clear();
    this.unnamed = false;
  }

  /** @returns all of it, as plain data: its fields by their names */
  freeze() {
    const { entries, unit, dirty, before, observed, custom, unnamed, believed } = this;
    return { entries, unit, dirty, before, observed, custom, unnamed, believed };
  }

  /** The state that {@link freeze} told. */
  static thaw(frozen: ReturnType<SessionState['freeze']>): SessionState {
    const state = new SessionState();
    Object.assign(state, frozen);
    return state;
  }

  private rollbackTo(name: string): void {
    for (let i = this.unit.length - 1; i >= 0; i--) {
      const savepoint = this.unit[i].facts.savepoint;
      if (savepoint?.op === 'savepoint' && savepoint.name === name) {
        // PREPARE and DEALLOCATE are not undone by a rollback, nor is what is done to a session's locks.
        const kept = this.unit
          .slice(i + 1)
          .filter(({ facts }) => isImmediate(facts) || facts.sessionFunctions.some(isLock));
        this.unit = [...this.unit.slice(0, i + 1), ...kept];
        return;
      }
    }
  }

  /** Marks what must be asked. What the statement itself tells counts until the server has answered. */
  private note({ facts, values, hidden }: Change, committed: boolean): void {
    const { observed } = this;
    if (committed) {
      // What ON COMMIT DROP made is gone by now.
      if (facts.tempTable?.onCommitDrop === false) this.mark('temporary', facts.tempTable.name);
      for (const name of facts.dropRelation ?? []) {
        this.dirty.get('temporary')?.delete(name);
        if (!observed.temporary.includes(name)) continue;
        this.mark('temporary');
        this.observed = { ...this.observed, temporary: observed.temporary.filter((other) => other !== name) };
      }
      if (facts.declareCursor?.hold) this.mark('held', facts.declareCursor.name);
    }
    if (facts.closeCursor !== undefined) {
      const closed = (name: string) => facts.all || name === facts.closeCursor;
      if (observed.held.some(closed)) this.mark('held');
      for (const name of [...(this.dirty.get('held') ?? [])]) if (closed(name)) this.dirty.get('held')!.delete(name);
      this.observed = { ...this.observed, held: observed.held.filter((name) => !closed(name)) };
    }
    if (facts.discard === 'all' || facts.discard === 'temp') {
      this.dirty.delete('temporary');
      this.observed = { ...this.observed, temporary: [] };
    }
    if (facts.discard === 'all') {
      this.dirty.clear();
      this.observed = NOTHING_OBSERVED;
    }
    // The locks of a session survive the rollback of a transaction.
    for (const name of facts.sessionFunctions.filter(isLock)) {
      if (!name.includes('_unlock')) this.mark('advisory', '(just taken)');
      else if (name === 'pg_advisory_unlock_all' && facts.sessionFunctions.length === 1) {
        this.dirty.delete('advisory');
        this.observed = { ...this.observed, advisory: [] };
      } else if (observed.advisory.length > 0) this.mark('advisory');
    }
    // They may have done anything.
    for (const name of hidden ?? []) if (name.includes('.')) this.custom.add(name);
    if (facts.effect === 'opaque' || hidden !== null) {
      this.mark('temporary', `(perhaps made by ${facts.verb})`);
      this.mark('advisory', `(perhaps taken by ${facts.verb})`);
      this.mark('settings');
    }
    for (const config of (committed && facts.setConfigs) || []) {
      if (config.local === true) continue;
      const names = config.name === undefined ? values.filter((value) => SETTING_NAME.test(value)) : [config.name];
      if (names.length === 0) this.unnamed = true;
      this.mark('settings', ...names);
      for (const name of names) if (name.includes('.')) this.custom.add(name);
    }
    if (facts.set?.name.includes('.')) this.custom.add(facts.set.name);
    if (committed && facts.set?.kind === 'reset-all') this.unnamed = false;
  }

  private mark(kind: Kind, ...names: string[]): void {
    const marked = this.dirty.get(kind) ?? new Set();
    for (const name of names) marked.add(name);
    this.dirty.set(kind, marked);
  }

  private apply({ facts, sql }: Change): void {
    const set = facts.set;
    if (set !== undefined && set.scope === 'session') {
      if (set.kind === 'reset-all') {
        for (const key of [...this.entries.keys()]) if (key.startsWith('set ')) this.entries.delete(key);
        if (this.observed.settings !== null) this.observed = { ...this.observed, settings: null };
      } else
        this.put(
          set.name === 'role' || set.name === 'session_authorization' ? `identity ${set.name}` : `set ${set.name}`,
          sql,
        );
    } else if (facts.listen !== undefined) this.put(`listen ${facts.listen}`, sql);
    else if (facts.unlisten !== undefined) {
      if (facts.unlisten === '*') this.drop('listen ');
      else this.entries.delete(`listen ${facts.unlisten}`);
    } else if (facts.prepare !== undefined) this.put(`prepare ${facts.prepare}`, sql);
    else if (facts.deallocate !== undefined) {
      if (facts.all) this.drop('prepare ');
      else this.entries.delete(`prepare ${facts.deallocate}`);
    } else if (facts.discard === 'all') {
      this.entries.clear();
      this.unnamed = false;
    }
  }

  /** Last writer wins, and is restored last. */
  private put(key: string, sql: string): void {
    this.entries.delete(key);
    this.entries.set(key, sql);
  }

  private drop(prefix: string): void {
    for (const key of [...this.entries.keys()]) if (key.startsWith(prefix)) this.entries.delete(key);
  }
}

/** What the keys of the entries begin with, in words. */
const KINDS: Readonly<Record<string, string>> = {
  set: 'session setting',
  identity: 'session setting',
  listen: 'LISTEN',
  prepare: 'prepared statement',
};

/** True for functions that take or give back a session's advisory locks. */
function isLock(name: string): boolean {
  return name.startsWith('pg_') && name.includes('advisory') && !name.includes('_xact_');
}

/** True when the statement's session effect does not wait for the commit. */
function isImmediate(facts: StatementFacts): boolean {
  return facts.prepare !== undefined || facts.deallocate !== undefined;
}

/** True when completing the statement matters to the session's state. */
export function touchesSession(facts: StatementFacts): boolean {
  return (
    (facts.effect === 'session' && !facts.local) ||
    facts.effect === 'opaque' ||
    facts.changesCatalogue ||
    facts.savepoint !== undefined ||
    facts.tempTable !== undefined ||
    facts.dropRelation !== undefined ||
    facts.declareCursor !== undefined ||
    facts.closeCursor !== undefined ||
    facts.sessionFunctions.length > 0 ||
    facts.setConfigs !== undefined
  );
}

/** A string constant of SQL, whatever standard_conforming_strings says. */
export function quoteLiteral(value: string): string {
  const escaped = value.replaceAll("'", "''");
  return value.includes('\\') ? `E'${escaped.replaceAll('\\', '\\\\')}'` : `'${escaped}'`;
}
