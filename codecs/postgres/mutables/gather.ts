import { isUtf8 } from 'node:buffer';
import type { SeenRequest } from '../../../core/contract/index.js';
import { text } from '../inject.js';
import { lengthAt } from '../messages.js';
import { splitStatements } from '../sql/split.js';
import {
  AnswerReader,
  Backend,
  Frontend,
  hasRow,
  join,
  parameterTypes,
  readBind,
  readParse,
  rowDescription,
  seenRow,
  terminator,
  wholeAt,
} from './answers.js';
import type { ResultColumn, SeenStatement, SeenValue } from './types.js';

/** A statement prepared at the protocol level, as this module needs it. */
export interface PreparedStatement {
  /** The Parse message. */
  readonly parse: Uint8Array;
  readonly sql: string;
}

/** One executed statement of the unit, in the order of execution. */
export interface Step {
  /** Number of its request; of an extended one, the one with its Bind. */
  readonly request: number;
  readonly seen: SeenStatement;
  /** It is repeated as it is: it failed, or it cannot be understood, or what it needs is made in the same request. */
  readonly fixed: boolean;
  /** It failed: nothing of it is known but that it was tried. */
  readonly failed: boolean;
  /** Names without a schema do not mean here what they mean on a fresh connection: the unit changed the search path or role. */
  readonly elsewhere: boolean;
  readonly place:
    | { readonly kind: 'query'; readonly start: number; readonly end: number }
    | {
        readonly kind: 'bind';
        /** Where in the request the Bind stands. */
        readonly at: number;
        /** The client's Parse message. */
        readonly parse: Uint8Array;
        /** Parameter types as the server told them to the client. */
        readonly types: readonly number[] | null;
      };
}

/** What `gather` finds: plain data, understood by `reserve` and `plan`. */
export interface Gathered {
  readonly count: number;
  /** What the client sent, by request; null where nothing is to be written anew. */
  readonly requests: readonly (Uint8Array | null)[];
  readonly steps: readonly Step[];
}

/** Words of statements whose answer may show what the server made up. An INSERT without RETURNING shows nothing. */
const SHOWS =
  /returning|now\b|current_|local|clock|time|val\s*\(|random|uuid|txid|xact|snapshot|\bpg_|inet_|version|gen_|array_s|\bage\s*\(|today|tomorrow|yesterday/i;
/** Statements behind which a name may mean something else: in another schema, or something that the unit itself makes. */
const ELSEWHERE =
  /search_path|^(?:set|reset)\s+(?:local\s+|session\s+)?(?:role|schema|session\s+authorization|all)\b|^(?:create|alter|drop|discard)\b/i;
/** Verbs of statements that make no object that a later one may name. */
const MAKES_NOTHING =
  /^(select|insert|update|delete|merge|with|values|table|begin|start|savepoint|release|rollback|fetch|move|declare|close|lock|show|notify|listen|unlisten|explain)\b/i;
const DEALLOCATE = /^deallocate\s+(?:prepare\s+)?(?:"((?:[^"]|"")+)"|(\w+))\s*$/i;
const DISCARD_ALL = /^discard\s+all\s*$/i;

/** White space, comments and parentheses in front of a statement's first word. */
const LEAD = /^(?:\s|\(|--[^\n]*(?:\n|$)|\/\*[\s\S]*?\*\/)+/;

/** A statement from its first word on. */
export function fromVerb(sql: string): string {
  return sql.replace(LEAD, '');
}

const ENVIRONMENT = { standardConformingStrings: true };

/** What is known of texts that are prepared once and used often. */
const shown = new WeakMap<PreparedStatement, boolean>();

/** Whether any answer of the unit may show what the server made up, told from the texts alone and without reading the rest. */
function mayShow(seen: readonly SeenRequest[], prepared: ReadonlyMap<string, PreparedStatement>): boolean {
  const own = new Map<string, boolean>();
  for (const { input, answer } of seen) {
    const bytes = join(input);
    let shows = false;
    for (let at = 0; wholeAt(bytes, at); at += lengthAt(bytes, at)) {
      const end = at + lengthAt(bytes, at);
      switch (bytes[at]) {
        case Frontend.QUERY:
          shows ||= SHOWS.test(latin1(bytes.subarray(at + 5, end - 1)));
          break;
        case Frontend.PARSE: {
          const nameEnd = terminator(bytes, at + 5, end);
          own.set(text(bytes, at + 5, nameEnd), SHOWS.test(latin1(bytes.subarray(nameEnd + 1, end))));
          break;
        }
        case Frontend.BIND: {
          const portalEnd = terminator(bytes, at + 5, end);
          const name = text(bytes, portalEnd + 1, terminator(bytes, portalEnd + 1, end));
          shows ||= own.get(name) ?? preparedShows(prepared.get(name));
          break;
        }
        case Frontend.EXECUTE:
          // A portal may have been bound in an earlier request.
          shows ||= bytes[0] === Frontend.EXECUTE;
          break;
      }
    }
    if (shows && answer !== null && hasRow(answer)) return true;
  }
  return false;
}

function preparedShows(statement: PreparedStatement | undefined): boolean {
  if (statement === undefined) return false;
  let shows = shown.get(statement);
  if (shows === undefined) shown.set(statement, (shows = SHOWS.test(statement.sql)));
  return shows;
}

/**
 * See `Mutables.gather`.
 * @param prepared statements of the session as they were before the first of these requests
 */
export function gather(
  seen: readonly SeenRequest[],
  prepared: ReadonlyMap<string, PreparedStatement>,
): Gathered | null {
  return mayShow(seen, prepared) ? walk(seen, prepared) : null;
}

interface Statement {
  readonly parse: Uint8Array;
  readonly sql: Uint8Array | string;
  columns: readonly ResultColumn[] | null;
  types: readonly number[] | null;
}

interface Portal {
  readonly statement: Statement | null;
  readonly request: number;
  readonly at: number;
  readonly formats: readonly number[];
  columns: readonly ResultColumn[] | null;
  /** The object that is made in the same request before it is bound. */
  readonly behindMaking: boolean;
  draft: Draft | null;
}

/** A step while its answer is being read. */
interface Draft {
  request: number;
  text: string;
  columns: readonly ResultColumn[] | null;
  rows: SeenValue[][];
  complete: boolean;
  fixed: boolean;
  failed: boolean;
  elsewhere: boolean;
  place: Step['place'];
}

/** Reads all requests and their answers. */
export function walk(seen: readonly SeenRequest[], prepared: ReadonlyMap<string, PreparedStatement>): Gathered {
  const walker = new Walker(prepared);
  const requests = seen.map((request, i) => {
    const bytes = join(request.input);
    walker.request(i, bytes, request);
    return bytes;
  });
  const steps = walker.drafts.map(finished);
  const used = new Set(steps.filter(({ fixed }) => !fixed).map(({ request }) => request));
  return { count: seen.length, requests: requests.map((bytes, i) => (used.has(i) ? bytes : null)), steps };
}

function finished({ text, columns, rows, complete, ...rest }: Draft): Step {
  return { ...rest, seen: { text, columns, rows, complete } };
}

class Walker {
  readonly drafts: Draft[] = [];
  private readonly statements = new Map<string, Statement>();
  private readonly portals = new Map<string, Portal>();
  /** The transaction is in the failed state. */
  private failed = false;
  private elsewhere = false;

  constructor(private readonly prepared: ReadonlyMap<string, PreparedStatement>) {}

  /** Names in `statements` that were closed: not to be looked for in `prepared`. */
  private readonly closed = new Set<string>();

  private statement(name: string): Statement | null {
    const own = this.statements.get(name);
    if (own !== undefined) return own;
    if (this.closed.has(name)) return null;
    const before = this.prepared.get(name);
    if (before === undefined) return null;
    const statement: Statement = { parse: before.parse, sql: before.sql, columns: null, types: null };
    this.statements.set(name, statement);
    return statement;
  }

  private forget(name: string): void {
    this.statements.delete(name);
    this.closed.add(name);
  }

  request(index: number, bytes: Uint8Array, { answer, done }: SeenRequest): void {
    const first = this.drafts.length;
    const reader = new AnswerReader(answer ?? []);
    let understood = false;
    try {
      understood = this.frames(index, bytes, reader, answer === null) && (!done || reader.peek() === 0);
    } catch (error) {
      // A message that is too short for its fields: the server will say so.
      if (!(error instanceof RangeError)) throw error;
    }
    if (understood) return;
    // The answer is not one to this request as it was read here: nothing may be built upon that.
    for (const draft of this.drafts.slice(first)) draft.fixed = true;
  }

  /** @returns false when the answer does not fit */
  private frames(index: number, bytes: Uint8Array, reader: AnswerReader, opaque: boolean): boolean {
    let making = false;
    /** Goes behind the next frame of the answer when it is one of these. @returns where it begins, -1 when there is none, null when it is another */
    const expect = (...types: number[]): number | null => {
      const type = reader.peek();
      if (type === 0) return -1;
      return types.includes(type) ? reader.next() : null;
    };
    for (let at = 0; wholeAt(bytes, at); at += lengthAt(bytes, at)) {
      const end = at + lengthAt(bytes, at);
      if (reader.peek() === Backend.ERROR && bytes[at] !== Frontend.QUERY && bytes[at] !== Frontend.EXECUTE) {
        reader.next();
        this.failed = true;
        return true;
      }
      switch (bytes[at]) {
        case Frontend.QUERY:
          return this.query(index, bytes, at, end, reader, opaque);
        case Frontend.PARSE: {
          if (expect(Backend.PARSE_COMPLETE) === null) return false;
          const { name, sql } = readParse(bytes, at);
          this.statements.set(name, { parse: bytes.subarray(at, end), sql, columns: null, types: null });
          break;
        }
        case Frontend.BIND: {
          if (expect(Backend.BIND_COMPLETE) === null) return false;
          const bind = readBind(bytes, at);
          this.portals.set(bind.portal, {
            statement: this.statement(bind.statement),
            request: index,
            at,
            formats: bind.resultFormats,
            columns: null,
            behindMaking: making,
            draft: null,
          });
          break;
        }
        case Frontend.DESCRIBE: {
          const name = text(bytes, at + 6, terminator(bytes, at + 6, end));
          const ofStatement = bytes[at + 5] === 0x53;
          const described = ofStatement ? this.statement(name) : (this.portals.get(name) ?? null);
          if (ofStatement) {
            const parameters = expect(Backend.PARAMETER_DESCRIPTION);
            if (parameters === null) return false;
            if (parameters >= 0 && described !== null)
              (described as Statement).types = parameterTypes(reader.bytes, parameters);
          }
          const row = reader.peek() === Backend.ROW_DESCRIPTION;
          const where = expect(Backend.ROW_DESCRIPTION, Backend.NO_DATA);
          if (where === null) return false;
          if (row && described !== null) described.columns = rowDescription(reader.bytes, where);
          break;
        }
        case Frontend.EXECUTE: {
          const portal = this.portals.get(text(bytes, at + 5, terminator(bytes, at + 5, end)));
          const ended = this.execute(portal ?? null, reader, opaque);
          if (ended !== 'on') return ended === 'failed';
          const sql = portal?.statement?.sql;
          if (sql === undefined || !MAKES_NOTHING.test(fromVerb(latin1(sql)))) making = true;
          break;
        }
        case Frontend.CLOSE: {
          if (expect(Backend.CLOSE_COMPLETE) === null) return false;
          const name = text(bytes, at + 6, terminator(bytes, at + 6, end));
          if (bytes[at + 5] === 0x53) this.forget(name);
          else this.portals.delete(name);
          break;
        }
        case Frontend.FUNCTION_CALL:
          if (expect(Backend.FUNCTION_RESULT) === null) return false;
          break;
      }
    }
    if (reader.peek() === Backend.ERROR) {
      // At the Sync: a deferred constraint, or what cancelled the request in its end.
      reader.next();
      this.failed = true;
    }
    return true;
  }

  /** @returns whether the request goes on, failed here, or does not fit */
  private execute(portal: Portal | null, reader: AnswerReader, opaque: boolean): 'on' | 'failed' | 'unfit' {
    const statement = portal?.statement ?? null;
    if (portal !== null && portal.draft === null && statement !== null) {
      portal.draft = this.draft(portal.request, statement.sql, {
        kind: 'bind',
        at: portal.at,
        parse: statement.parse,
        types: statement.types,
      });
      portal.draft.columns = portal.columns ?? statement.columns;
      if (portal.behindMaking || opaque) portal.draft.fixed = true;
    }
    const draft = portal?.draft ?? null;
    return this.rows(draft, reader, portal?.formats ?? [], false);
  }

  private query(
    index: number,
    bytes: Uint8Array,
    start: number,
    end: number,
    reader: AnswerReader,
    opaque: boolean,
  ): boolean {
    this.forget('');
    const textEnd = terminator(bytes, start + 5, end);
    const statements = splitStatements(bytes, start + 5, textEnd, ENVIRONMENT);
    for (const each of statements) {
      const sql = bytes.subarray(each.start, each.end);
      const draft = this.draft(index, sql, { kind: 'query', start: each.start, end: each.end });
      if (opaque) draft.fixed = true;
      if (reader.peek() === Backend.ROW_DESCRIPTION) draft.columns = rowDescription(reader.bytes, reader.next());
      const ended = this.rows(draft, reader, [], true);
      if (ended !== 'on') return ended === 'failed';
    }
    if (statements.length === 0 && reader.peek() === Backend.EMPTY_QUERY) reader.next();
    return true;
  }

  private draft(request: number, sql: Uint8Array | string, place: Step['place']): Draft {
    const readable = typeof sql === 'string' ? !sql.includes('\ufffd') : isUtf8(sql);
    const draft: Draft = {
      request,
      text: typeof sql === 'string' ? sql : text(sql, 0, sql.length),
      columns: null,
      rows: [],
      complete: false,
      fixed: this.failed || !readable,
      failed: this.failed,
      elsewhere: this.elsewhere,
      place,
    };
    this.drafts.push(draft);
    const plain = fromVerb(draft.text);
    if (ELSEWHERE.test(plain)) this.elsewhere = true;
    const deallocated = DEALLOCATE.exec(plain);
    if (DISCARD_ALL.test(plain) || deallocated?.[2]?.toLowerCase() === 'all') {
      for (const name of [...this.statements.keys(), ...this.prepared.keys()]) this.forget(name);
    } else if (deallocated !== null) {
      this.forget(deallocated[1]?.replaceAll('""', '"') ?? deallocated[2].toLowerCase());
    }
    return draft;
  }

  /** The answer to one executed statement. */
  private rows(
    draft: Draft | null,
    reader: AnswerReader,
    formats: readonly number[],
    simple: boolean,
  ): 'on' | 'failed' | 'unfit' {
    for (;;) {
      switch (reader.peek()) {
        case 0:
          return 'on';
        case Backend.DATA_ROW: {
          const row = seenRow(reader.bytes, reader.next(), formats);
          draft?.rows.push(row);
          break;
        }
        case Backend.COMMAND_COMPLETE: {
          const at = reader.next();
          if (draft !== null) draft.complete = true;
          const tag = text(reader.bytes, at + 5, at + lengthAt(reader.bytes, at) - 1);
          if (tag === 'ROLLBACK' || tag === 'COMMIT') this.failed = false;
          return 'on';
        }
        case Backend.PORTAL_SUSPENDED:
          if (simple) return 'unfit';
          reader.next();
          return 'on';
        case Backend.EMPTY_QUERY:
          reader.next();
          return 'on';
        case Backend.COPY_IN:
        case Backend.COPY_OUT:
        case Backend.COPY_DATA:
        case Backend.COPY_DONE:
          reader.next();
          if (draft !== null) draft.fixed = true;
          break;
        case Backend.ERROR:
          reader.next();
          this.failed = true;
          if (draft !== null) draft.fixed = draft.failed = true;
          return 'failed';
        default:
          return 'unfit';
      }
    }
  }
}

function latin1(sql: Uint8Array | string): string {
  return typeof sql === 'string' ? sql : Buffer.from(sql.buffer, sql.byteOffset, sql.length).toString('latin1');
}
