//! A report as a picture: the targets side by side, over the number of requests at once.

use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{
    AsRangedCoord, DefaultFormatting, KeyPointHint, KeyPointWeight, Ranged, ValueFormatter,
};
use plotters::prelude::*;

use crate::report::{BenchReport, Figure, Iteration};
use crate::stats::Spread;
use crate::workload::WorkloadKind;

/// The kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    /// For any viewer.
    Svg,
    /// A page with the picture and the tables, for a browser.
    Html,
}

/// A picture of another kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a plot is written to a file that ends in .svg or .html")]
pub struct UnknownPicture;

impl Picture {
    /// As the file's name says.
    ///
    /// # Errors
    ///
    /// When it ends in neither.
    pub fn named(path: &Path) -> Result<Self, UnknownPicture> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("html" | "htm") => Ok(Self::Html),
            _ => Err(UnknownPicture),
        }
    }
}

/// Draws a report. Without anything measured (storms alone) there is nothing to draw.
#[must_use]
pub fn plot(report: &BenchReport, picture: Picture) -> Option<String> {
    let workloads: Vec<WorkloadKind> = report.measured_workloads().collect();
    if workloads.is_empty() {
        return None;
    }
    let height = HEAD + u32::try_from(workloads.len()).unwrap_or(u32::MAX).saturating_mul(ROW);
    let mut svg = String::new();
    draw(
        &SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area(),
        report,
        &workloads,
    )
    .expect("drawing into a text does not fail");
    Some(match picture {
        Picture::Svg => svg,
        Picture::Html => page(&svg, report),
    })
}

fn page(svg: &str, report: &BenchReport) -> String {
    let text = report.to_string().replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <title>interlock bench, {}</title>\n<body style=\"background:white;color:#222\">\n\
         {svg}\n<pre>\n{text}</pre>\n</body>\n</html>\n",
        report.at
    )
}

const WIDTH: u32 = 1100;
/// Title and legend.
const HEAD: u32 = 84;
/// Two by two panels and the workload's name.
const ROW: u32 = 720;

const INK: RGBColor = RGBColor(34, 34, 34);
const FAINT: RGBColor = RGBColor(225, 225, 225);
/// Okabe and Ito's, which everyone can tell apart.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult<'a> =
    Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// One panel of a plot. It shows one figure, or the two ends of one.
struct PlotPanel {
    title: &'static str,
    unit: &'static str,
    /// The figure that is drawn as a solid line.
    main: Figure,
    /// The figure that is drawn as a dashed line.
    other: Option<Figure>,
    /// Whether the axis is logarithmic, so that milliseconds and minutes can both be read.
    logarithmic: bool,
}

const PANELS: [PlotPanel; 4] = [
    PlotPanel {
        title: "All tokens per second",
        unit: "tokens/s",
        main: |batch| batch.tokens_per_s,
        other: None,
        logarithmic: false,
    },
    PlotPanel {
        title: "Wall clock of a batch",
        unit: "s",
        main: |batch| Some(batch.wall_s),
        other: None,
        logarithmic: false,
    },
    PlotPanel {
        title: "Time to first token: largest (line), smallest (dashed)",
        unit: "ms, logarithmic",
        main: |batch| batch.first_token_ms_most,
        other: Some(|batch: &Iteration| batch.first_token_ms_least),
        logarithmic: true,
    },
    PlotPanel {
        title: "Between two tokens: p99 (line), p50 (dashed)",
        unit: "ms, logarithmic",
        main: |batch| batch.inter_token_ms_p99,
        other: Some(|batch: &Iteration| batch.inter_token_ms_p50),
        logarithmic: true,
    },
];

fn draw<'a>(root: &Area<'a>, report: &BenchReport, workloads: &[WorkloadKind]) -> DrawResult<'a> {
    root.fill(&WHITE)?;
    let (head, rows) = root.split_vertically(HEAD);
    legend(&head, report)?;
    for (row, workload) in rows.split_evenly((workloads.len(), 1)).iter().zip(workloads) {
        let title = format!("workload: {workload}");
        row.draw_text(&title, &text(17).color(&INK), (24, 6))?;
        let (_, panels) = row.split_vertically(26);
        for (area, panel) in panels.split_evenly((2, 2)).iter().zip(&PANELS) {
            panel.draw(area, report, *workload)?;
        }
    }
    Ok(())
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_text_style(&(WIDTH, HEAD))
}

fn legend<'a>(head: &Area<'a>, report: &BenchReport) -> DrawResult<'a> {
    let mut models: Vec<&str> = report.targets.iter().map(|target| target.model.as_str()).collect();
    models.dedup();
    let title = format!("interlock bench: {}", models.join(", "));
    head.draw_text(&title, &text(22).color(&INK), (24, 14))?;
    let plan = &report.plan;
    let about = format!(
        "{}, {} cores; {} tokens an answer; mean and standard deviation of {} iterations",
        report.machine.cpu, report.machine.cores, plan.max_tokens, plan.iterations
    );
    head.draw_text(&about, &text(13).color(&INK), (24, 42))?;
    let mut x = 24;
    for (name, color) in report.target_names().zip(COLORS.iter().cycle()) {
        head.draw(&PathElement::new([(x, 71), (x + 26, 71)], color.stroke_width(3)))?;
        head.draw(&Circle::new((x + 13, 71), 4, color.filled()))?;
        head.draw_text(name, &text(15).color(&INK), (x + 34, 63))?;
        x += 64 + i32::try_from(name.chars().count()).unwrap_or(0) * 8;
    }
    Ok(())
}

impl PlotPanel {
    fn draw<'a>(
        &self,
        area: &Area<'a>,
        report: &BenchReport,
        workload: WorkloadKind,
    ) -> DrawResult<'a> {
        let figures = || [Some(self.main), self.other].into_iter().flatten();
        let spreads: Vec<Spread> = figures()
            .flat_map(|figure| points(report, workload, figure))
            .flatten()
            .map(|at| at.1)
            .collect();
        let most = spreads.iter().map(|s| s.mean + s.deviation).fold(0.0, f64::max);
        if spreads.is_empty() || most <= 0.0 {
            let why = format!("{}: nothing measured", self.title);
            return area.draw_text(&why, &text(15).color(&INK), (24, 20));
        }
        if self.logarithmic {
            let least = spreads.iter().map(low).fold(most, f64::min).max(1e-3);
            let (low, high) = (least * 0.7, most * 1.5);
            let y = (low..high).log_scale().with_key_points(one_two_five(low, high));
            self.lines(area, report, workload, y)
        } else {
            self.lines(area, report, workload, 0.0..most * 1.12)
        }
    }

    fn lines<'a, Y>(
        &self,
        area: &Area<'a>,
        report: &BenchReport,
        workload: WorkloadKind,
        y: Y,
    ) -> DrawResult<'a>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let at_once: Vec<u32> = report.plan.concurrency.iter().map(|c| c.get()).collect();
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, text(15).color(&INK))
            .margin(14)
            .margin_left(20)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(ConcurrencyAxis(at_once.len()), y)?;
        let concurrency = |x: &f64| at_once[x.round() as usize].to_string();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .label_style(text(13).color(&INK))
            .axis_desc_style(text(13).color(&INK))
            .x_desc("requests at once")
            .y_desc(self.unit)
            .x_label_formatter(&concurrency)
            .y_label_formatter(&|y| number(*y))
            .draw()?;
        for (figure, dashed) in [(Some(self.main), false), (self.other, true)] {
            let Some(figure) = figure else { continue };
            for (points, color) in
                points(report, workload, figure).iter().zip(COLORS.iter().cycle())
            {
                let means = points.iter().map(|(x, spread)| (*x, spread.mean));
                let style = color.stroke_width(2);
                if dashed {
                    chart.draw_series(DashedLineSeries::new(means.clone(), 6, 4, style))?;
                } else {
                    chart.draw_series(LineSeries::new(means.clone(), style))?;
                }
                let bars = points.iter().filter(|(_, spread)| spread.deviation > 0.0);
                chart.draw_series(bars.map(|(x, spread)| {
                    let high = spread.mean + spread.deviation;
                    ErrorBar::new_vertical(*x, low(spread), spread.mean, high, color.filled(), 8)
                }))?;
                chart.draw_series(means.map(|at| Circle::new(at, 4, color.filled())))?;
            }
        }
        Ok(())
    }
}

/// The axis of concurrencies. Concurrencies usually double, so even steps show more than a true scale.
struct ConcurrencyAxis(usize);

impl Ranged for ConcurrencyAxis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        from + (f64::from(to - from) * (place - start) / (end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight() {
            KeyPointWeight::Bold => (0..).map(f64::from).take(self.0).collect(),
            KeyPointWeight::Any => Vec::new(),
        }
    }

    fn range(&self) -> Range<f64> {
        -0.3..self.0 as f64 - 0.7
    }
}

/// The labels of a logarithmic axis. plotters' own begin at a power of ten, so an axis from 12 to 80
/// would have none.
fn one_two_five(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let steps: &[f64] = if last - first > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all =
        (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
    all.filter(|label| (low..=high).contains(label)).collect()
}

/// The lower end of an error bar. A logarithmic axis cannot show a value that is not above 0.
fn low(spread: &Spread) -> f64 {
    let low = spread.mean - spread.deviation;
    if low > 0.0 { low } else { spread.least }
}

/// For each target, its place on the axis and figure, where it has one.
fn points(report: &BenchReport, workload: WorkloadKind, figure: Figure) -> Vec<Vec<(f64, Spread)>> {
    let of = |target| {
        let at = |(index, at_once): (u32, &NonZeroU32)| {
            let spread = report.cell(workload, *at_once, target)?.spread(figure)?;
            Some((f64::from(index), spread))
        };
        (0..).zip(&report.plan.concurrency).filter_map(at).collect()
    };
    report.target_names().map(of).collect()
}

/// As short as it can be read.
fn number(y: f64) -> String {
    match y.abs() {
        size if size >= 10.0 || size == 0.0 => format!("{y:.0}"),
        size if size >= 1.0 => format!("{y:.1}"),
        size if size >= 0.1 => format!("{y:.2}"),
        _ => format!("{y:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::BenchPlan;
    use crate::report::tests::{report, storm};

    #[test]
    fn a_picture_has_each_target_each_panel_and_each_concurrency() {
        let svg = plot(&report(), Picture::Svg).expect("something was measured");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        let titles = PANELS.iter().map(|panel| panel.title);
        for text in
            titles.chain(["simple", "batched", "requests at once", "tokens/s", "workload: short"])
        {
            assert!(svg.contains(text), "{text:?} is in the picture");
        }
        for concurrency in ["1", "4"] {
            let labels = svg.lines().filter(|line| line.trim() == concurrency).count();
            assert!(labels >= PANELS.len(), "{concurrency} stands under {labels} panels");
        }
    }

    #[test]
    fn what_was_not_measured_is_said_instead_of_drawn() {
        let mut report = report();
        for batch in report.cells.iter_mut().flat_map(|cell| &mut cell.batches) {
            batch.inter_token_ms_p50 = None;
            batch.inter_token_ms_p99 = None;
        }
        let svg = plot(&report, Picture::Svg).expect("something was measured");
        assert!(svg.contains("Between two tokens: p99 (line), p50 (dashed): nothing measured"));
    }

    #[test]
    fn a_logarithmic_axis_has_labels_wherever_it_begins() {
        assert_eq!(one_two_five(12.0, 80.0), [20.0, 50.0]);
        assert_eq!(one_two_five(0.9, 12.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(one_two_five(0.5, 30_000.0), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn storms_alone_have_no_picture() {
        let mut report = report();
        report.plan = BenchPlan { workloads: vec![WorkloadKind::Storm], ..report.plan };
        report.storms = vec![storm()];
        assert_eq!(plot(&report, Picture::Html), None);
    }

    #[test]
    fn a_page_shows_the_tables_too_and_names_do_no_harm() {
        let mut report = report();
        report.targets[0].model = "<script>".to_owned();
        let page = plot(&report, Picture::Html).expect("something was measured");
        assert!(page.contains("Wall clock, s (short)") && !page.contains("<script>"));
    }

    #[test]
    fn a_picture_is_named_by_its_kind() {
        assert_eq!(Picture::named(Path::new("a/b.svg")), Ok(Picture::Svg));
        assert_eq!(Picture::named(Path::new("b.html")), Ok(Picture::Html));
        assert_eq!(Picture::named(Path::new("b.png")), Err(UnknownPicture));
    }
}
