import type { Blocker } from '../../core/contract/index.js';
import type { StatementFacts } from './sql/facts.js';

/** One change of the session's state, in the order in which the statements were completed. */
interface Change {
  readonly facts: StatementFacts;
  /** The statement's text, to be run again by `restore`. */
  readonly sql: string;
}

/** What the server was last seen to hold for this session beyond settings. */
export interface Observed {
  readonly advisory: { readonly call: string; readonly label: string }[];
  readonly temporary: string[];
  readonly held: string[];
  /** Settings changed by function calls, where the text of the statement does not tell. */
  readonly settings: [name: string, value: string][] | null;
}

const NOTHING_OBSERVED: Observed = { advisory: [], temporary: [], held: [], settings: null };

/**
 * The state of a session that a new server must be brought to: settings, LISTEN, statements prepared in SQL. Changes inside a
 * transaction count when it commits (SET, LISTEN) or at once (PREPARE, DEALLOCATE), as on the server.
 */
export class SessionState {
  /** Statement texts by what they set; the order of insertion is the order of restoring. */
  private readonly entries = new Map<string, string>();
  private unit: Change[] = [];
  /** What may have changed that only the server can tell; asked for by `observe`. */
  private dirty = new Set<'advisory' | 'temporary' | 'held' | 'settings'>();
  private observed: Observed = NOTHING_OBSERVED;
  private readonly custom = new Set<string>();

  /** A statement was completed inside the open unit. */
  completed(facts: StatementFacts, sql: string): void {
    if (facts.savepoint?.op === 'rollbackTo') {
      this.rollbackTo(facts.savepoint.name);
      return;
    }
    this.unit.push({ facts, sql });
  }

  /** The unit is over; its changes count or do not. */
  unitEnd(committed: boolean): void {
    const unit = this.unit;
    if (unit.length === 0) return;
    this.unit = [];
    for (const change of unit) {
      this.note(change.facts);
      if (committed || isImmediate(change.facts)) this.apply(change);
    }
  }

  /** The unit will be repeated. */
  rewind(): void {
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
  statements(): string[] {
    // set_config and not SET: the value is in the form of current_setting(), also where it is a list.
    const settings = (this.observed.settings ?? []).map(
      ([name, value]) => `SELECT pg_catalog.set_config(${quoteLiteral(name)}, ${quoteLiteral(value)}, false)`,
    );
    return [...settings, ...this.entries.values()];
  }

  /** Session-level advisory locks to be taken again. */
  locks(): Observed['advisory'] {
    return this.observed.advisory;
  }

  blockers(): Blocker[] {
    const blockers: Blocker[] = [];
    for (const name of this.observed.temporary) blockers.push({ what: 'temporary table', name });
    for (const name of this.observed.held) blockers.push({ what: 'cursor WITH HOLD', name });
    if (this.dirty.has('temporary')) blockers.push({ what: 'temporary table', name: '(just created)' });
    if (this.dirty.has('held')) blockers.push({ what: 'cursor WITH HOLD', name: '(just declared)' });
    if (this.dirty.has('advisory')) blockers.push({ what: 'session advisory lock', name: '(just taken)' });
    return blockers;
  }

  forgetBlockers(): void {
    this.dirty.clear();
    this.observed = { ...NOTHING_OBSERVED, settings: this.observed.settings };
  }

  freeze(): unknown {
    return { entries: [...this.entries], observed: this.observed, dirty: [...this.dirty] };
  }

  private rollbackTo(name: string): void {
    for (let i = this.unit.length - 1; i >= 0; i--) {
      const savepoint = this.unit[i].facts.savepoint;
      if (savepoint?.op === 'savepoint' && savepoint.name === name) {
        // PREPARE and DEALLOCATE are not undone by a rollback.
        this.unit = [...this.unit.slice(0, i + 1), ...this.unit.slice(i + 1).filter((c) => isImmediate(c.facts))];
        return;
      }
    }
  }

  /** Marks what must be asked, whether the transaction committed or not: locks of a session survive its rollback. */
  private note(facts: StatementFacts): void {
    if (facts.tempTable !== undefined || facts.dropRelation !== undefined) {
      if (facts.tempTable !== undefined || this.observed.temporary.length > 0) this.dirty.add('temporary');
    }
    if (facts.declareCursor?.hold || (facts.closeCursor !== undefined && this.observed.held.length > 0))
      this.dirty.add('held');
    if (facts.discard !== undefined) {
      if (this.observed.temporary.length > 0) this.dirty.add('temporary');
      if (this.observed.held.length > 0) this.dirty.add('held');
      if (this.observed.advisory.length > 0) this.dirty.add('advisory');
    }
    for (const name of facts.sessionFunctions) {
      if (name.startsWith('pg_') && name.includes('advisory') && !name.includes('_xact_')) this.dirty.add('advisory');
    }
    if (facts.effect === 'opaque') this.dirty.add('temporary').add('advisory').add('settings');
    if (facts.setConfigs?.some((c) => c.local !== true)) this.dirty.add('settings');
    for (const name of [facts.set?.name, ...(facts.setConfigs ?? []).map((c) => c.name)]) {
      if (name?.includes('.')) this.custom.add(name);
    }
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
      this.observed = { ...this.observed, settings: null };
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
