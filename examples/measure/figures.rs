//! A table of figures: each with its median over the rounds, the least and the most; goals, and whether they were met.

use serde_json::{Value, json};

/// What was measured, in the order in which it was first noted.
#[derive(Default)]
pub(crate) struct Figures {
    what: &'static str,
    conditions: Vec<(&'static str, Value)>,
    rows: Vec<Row>,
    remarks: Vec<String>,
}

struct Row {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
    goal: Option<Goal>,
}

/// What the median should be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

impl Figures {
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            ..Self::default()
        }
    }

    /// Under which conditions it was measured.
    pub(crate) fn condition(&mut self, name: &'static str, value: impl Into<Value>) {
        self.conditions.push((name, value.into()));
    }

    /// A sentence below the table.
    pub(crate) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// One more value of a figure.
    pub(crate) fn note(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        let name = name.into();
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row {
                name,
                unit,
                values: vec![value],
                goal: None,
            }),
        }
    }

    /// As [`Figures::note`], of a figure that has a goal.
    pub(crate) fn ratio(&mut self, name: impl Into<String>, value: f64, goal: Goal) {
        let name = name.into();
        self.note(name.clone(), "x", value);
        self.set_goal(&name, goal);
    }

    /// Names the goal of a figure that was noted.
    pub(crate) fn set_goal(&mut self, name: &str, goal: Goal) {
        let row = self.rows.iter_mut().find(|row| row.name == name);
        row.expect("a figure has values before it has a goal").goal = Some(goal);
    }

    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            println!("{}", self.json());
        } else {
            self.table();
        }
    }

    fn json(&self) -> Value {
        let figures: serde_json::Map<String, Value> = self
            .rows
            .iter()
            .map(|row| {
                let (least, median, most) = spread(&row.values);
                let mut value = json!({
                    "unit": row.unit, "median": short(median), "least": short(least), "most": short(most),
                    "values": row.values.iter().map(|value| short(*value)).collect::<Vec<_>>(),
                });
                if let Some(goal) = row.goal {
                    value["goal"] = goal.to_string().into();
                    value["met"] = goal.is_met(median).into();
                }
                (row.name.clone(), value)
            })
            .collect();
        let conditions: serde_json::Map<String, Value> = self
            .conditions
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        json!({
            "measured": self.what, "conditions": conditions, "figures": figures, "remarks": self.remarks,
        })
    }

    fn table(&self) {
        for (name, value) in &self.conditions {
            println!("{name}: {value}");
        }
        println!("\n| {} | median | least - most | | goal |", self.what);
        println!("|---|---:|---:|---|---|");
        for row in &self.rows {
            let (least, median, most) = spread(&row.values);
            let goal = row.goal.map_or(String::new(), |goal| {
                let met = if goal.is_met(median) { "met" } else { "missed" };
                format!("{goal}: {met}")
            });
            let range = format!("{} - {}", short(least), short(most));
            println!(
                "| {} | {} | {range} | {} | {goal} |",
                row.name,
                short(median),
                row.unit
            );
        }
        for remark in &self.remarks {
            println!("\n{remark}");
        }
    }
}

/// The least, the median and the most.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    };
    (sorted[0], median, sorted[sorted.len() - 1])
}

/// Three digits are more than a shared machine can promise.
fn short(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    if value.abs() >= 1000.0 {
        return value.round();
    }
    let scale = 10f64.powi(2 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
